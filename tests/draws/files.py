"""What the files of a chain hold, for tests that spoil them."""

from pymc_mpimap.draws.record import Frame


def records(path):
    """Return the frames of a log that is whole, those of its headers first."""
    data = path.read_bytes()
    found = [Frame.at(data, 0)]
    while found[-1].stop < len(data):
        found.append(Frame.at(data, found[-1].stop))
    return found


def overwrite(path, data):
    """Put other bytes in a file; one that is made anew, ext4 first writes to the disk."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def state_file(folder, chain, number):
    """Return the file with the sampler's state after this many draws."""
    for path in folder.glob(f"chain-{chain}.state-*"):
        frame = Frame.at(path.read_bytes(), 0)
        if frame is not None and frame.number == number:
            return path
    raise FileNotFoundError(f"no state after {number} draws in {folder}")
