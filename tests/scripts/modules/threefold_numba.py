"""The code of `threefold.Threefold` under numba, with other bits than in Python."""

import numpy as np
from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_default_op_cache_key
from threefold import Threefold


@register_funcify_default_op_cache_key(Threefold)
def compute(_op, **_):
    @numba_njit
    def threefold(x):
        return np.asarray(np.exp(np.log(3.0) + np.log(np.abs(x))) * np.sign(x))

    return threefold
