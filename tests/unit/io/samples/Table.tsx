import React, { memo, useCallback, useMemo, useState } from "react";
import type { ReactNode } from "react";

interface Column<R> {
  key: keyof R & string;
  title: ReactNode;
  render?: (row: R) => ReactNode;
}

export interface TableProps<R> {
  rows: readonly R[];
  columns: Column<R>[];
  onPick?: (row: R) => void;
}

const EMPTY = "nothing here — größer 🎉";

type Order = "up" | "down";

/** Sorts rows by a column. */
function useSorted<R>(rows: readonly R[], key: keyof R, order: Order): R[] {
  return useMemo(() => {
    const sorted = [...rows].sort((a, b) => (a[key] < b[key] ? -1 : 1));
    return order === "up" ? sorted : sorted.reverse();
  }, [rows, key, order]);
}

const Cell = memo(({ children }: { children: ReactNode }) => (
  <td className="cell">{children}</td>
));

export const Header = <R,>({ columns, onSort }: {
  columns: Column<R>[];
  onSort: (key: keyof R) => void;
}) => {
  return (
    <tr>
      {columns.map((column) => (
        <th key={column.key} onClick={() => onSort(column.key)}>
          {column.title}
        </th>
      ))}
    </tr>
  );
};

// A comment between components.
export default function Table<R extends { id: number }>(props: TableProps<R>) {
  const { rows, columns, onPick } = props;
  const [key, setKey] = useState<keyof R>("id");
  const sorted = useSorted(rows, key, "up");
  const pick = useCallback((row: R) => onPick?.(row), [onPick]);

  if (sorted.length === 0) {
    return <p>{EMPTY}</p>;
  }
  return (
    <>
      <table>
        <thead>
          <Header columns={columns} onSort={setKey} />
        </thead>
        <tbody>
          {sorted.map((row) => (
            <tr key={row.id} onClick={() => pick(row)}>
              {columns.map(({ key: name, render }) => (
                <Cell key={name}>{render ? render(row) : String(row[name])}</Cell>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </>
  );
}

class Boundary extends React.Component<{ children: ReactNode }, { failed: boolean }> {
  state = { failed: false };

  static getDerivedStateFromError() {
    return { failed: true };
  }

  render() {
    return this.state.failed ? <p>failed</p> : this.props.children;
  }
}

Table.Boundary = Boundary;
