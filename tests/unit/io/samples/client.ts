import { EventEmitter } from "node:events";
import type { Options } from "./options";

export const LIMIT = 10;
const enum Level { Low, High = 5 }

/** What a call may be — größer. */
export interface Call<T = unknown> extends Options {
  readonly id: string;
  run(signal?: AbortSignal): Promise<T>;
  [key: string]: unknown;
}

export type Outcome<T> =
  | { kind: "done"; value: T }
  | { kind: "failed"; error: Error };

export enum Phase {
  Open = "open",
  Shut = "shut",
}

declare global {
  interface Window {
    client?: Client;
  }
}

function logged(target: unknown, key: string): void {
  console.log(key, target);
}

/**
 * Makes calls.
 */
export abstract class Client<T extends Call = Call> extends EventEmitter {
  static #count = 0;
  private readonly calls = new Map<string, T>();
  phase: Phase = Phase.Open;

  constructor(protected readonly base: URL, private tries = 3) {
    super();
    Client.#count += 1;
  }

  get size(): number {
    return this.calls.size;
  }

  protected abstract name(): string;

  // A comment between members.
  @logged
  async call<R>(call: T, map: (value: unknown) => R): Promise<Outcome<R>> {
    for (let left = this.tries; left > 0; left--) {
      try {
        return { kind: "done", value: map(await call.run()) };
      } catch (error) {
        this.emit("failed", error as Error);
      }
    }
    return { kind: "failed", error: new Error(`no answer 🎉 ${this.name()}`) };
  }

  close = (): void => {
    this.phase = Phase.Shut;
  };
}

export function isDone<T>(outcome: Outcome<T>): outcome is { kind: "done"; value: T };
export function isDone(outcome: Outcome<unknown>): boolean {
  return outcome.kind === "done";
}

export namespace Names {
  export const known = new Set<string>();
  export function add(name: string) {
    known.add(name);
  }
}

const debounce = <A extends unknown[]>(f: (...args: A) => void, ms = 10) => {
  let timer: ReturnType<typeof setTimeout> | undefined;
  return (...args: A) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...args), ms);
  };
};

export default debounce(() => Names.add("x"));
