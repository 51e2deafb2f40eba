"""A tree of ranks, however few there are."""

from types import SimpleNamespace

import pytest

from pymc_mpimap.pool import tree
from pymc_mpimap.pool.balance import Balance
from pymc_mpimap.pool.link import Link
from tests.helpers import lay_out_anew
from tests.pools.trees import ranks


@pytest.fixture(params=[1, 2, 3])
def grown(request, monkeypatch):
    """Reach all ranks through a tree of this fan-out; yield what was sent off the hot path."""
    if ranks() < 3:
        pytest.skip("a tree takes three ranks")
    orders = []
    order = Link.order

    def recording_order(self, number, what, *known):
        orders.append((self.rank, what))
        order(self, number, what, *known)

    with monkeypatch.context() as patch:
        patch.setattr(tree, "FLAT", 1)
        patch.setattr(tree, "FAN_OUT", request.param)
        patch.setattr(Link, "order", recording_order)
        patch.setattr(Balance, "wants_costs", lambda *_: False)
        lay_out_anew()
        yield SimpleNamespace(orders=orders, fan_out=request.param)
    lay_out_anew()
