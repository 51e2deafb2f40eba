"""What the files of a chain hold, for tests that spoil them."""

import pickle

from pymc_mpimap.draws.log import _payload


def state_file(folder, chain, number):
    """Return the file with the sampler's state after this many draws."""
    for path in folder.glob(f"chain-{chain}.state-*"):
        payload = _payload(memoryview(path.read_bytes()))
        if payload is not None and pickle.loads(payload)[0] == number:
            return path
    raise FileNotFoundError(f"no state after {number} draws in {folder}")
