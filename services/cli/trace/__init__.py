"""`lodestone trace`: from files of spans to the critical path of a run."""
