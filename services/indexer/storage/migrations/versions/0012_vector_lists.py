"""How many lists of an index over vectors a search reads.

The version before knows another kind of index by `ef_search`: the column stays while it goes on.
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

STATEMENTS = ("ALTER TABLE vector_indexes ADD COLUMN probes int CHECK (probes BETWEEN 1 AND 1000)",)


def upgrade() -> None:
    """Adds the column."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
