package org.example.ledger;

import java.time.Clock;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.function.Function;

/**
 * Keeps runs — auch größere.
 *
 * @param <T> what a run works on
 */
@SuppressWarnings("unused")
public final class Ledger<T extends Comparable<T>> implements AutoCloseable {
    private static final int LIMIT = 100;
    private final List<Run> runs = new ArrayList<>();
    private final Clock clock;
    static {
        System.setProperty("ledger", "🎉");
    }

    public Ledger(Clock clock) {
        this.clock = clock;
    }

    /** One run. */
    public record Run(long id, State state) {
        public Run {
            if (id < 0) {
                throw new IllegalArgumentException("id");
            }
        }

        boolean isOver() {
            return state == State.DONE || state == State.FAILED;
        }
    }

    enum State {
        QUEUED("q"),
        DONE("d") {
            @Override
            String label() {
                return "finished";
            }
        },
        FAILED("f");

        private final String letter;

        State(String letter) {
            this.letter = letter;
        }

        String label() {
            return letter;
        }
    }

    @FunctionalInterface
    interface Listener {
        void onChange(Run run);

        default Listener andThen(Listener next) {
            return run -> {
                onChange(run);
                next.onChange(run);
            };
        }
    }

    // A comment between members.
    public <R> List<R> map(Function<? super Run, ? extends R> f) {
        var found = new ArrayList<R>();
        for (Run run : runs) {
            switch (run.state()) {
                case QUEUED -> found.add(f.apply(run));
                default -> { }
            }
        }
        return List.copyOf(found);
    }

    @Override
    public void close() {
        Runnable last = new Runnable() {
            @Override
            public void run() {
                runs.clear();
            }
        };
        last.run();
    }
}

@interface Audited {
    String value() default "";
    int[] levels() default {1, 2};
}
