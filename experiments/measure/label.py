"""Tensors of a trace, laid out as (draws, plates from left to right, event)."""

from experiments.measure.structure import DRAWS, is_deterministic, plates_of


class Label:
    """Knows where a run of `size` draws has its plates.  Answers are (plate names, tensor)."""

    def __init__(self, size, found):
        self.size, self.frames, self.depth = size, found.frames, found.nesting + 1
        self.event_dims = found.event_dims

    def __call__(self, value, plates, event_dim=0):
        """A value expanded to its plates; the dimension of draws is left of all plates."""
        frames = self._ordered(plates)
        split = value.dim() - event_dim
        # Enumeration leaves dimensions of size 1 on the far left.
        batch, event = value.shape[:split][-self.depth :], value.shape[split:]
        value = value.reshape(*[1] * (self.depth - len(batch)), *batch, *event)
        wanted = [self.size] + [1] * (self.depth - 1)
        for frame in frames:
            wanted[frame.dim] = frame.size
        value = value.expand(*wanted, *event)
        value = value.reshape(self.size, *[frame.size for frame in frames], *event)
        return tuple(frame.name for frame in frames), value

    def add(self, terms, keep, like):
        """The sum of terms [(plate names, tensor)] over all plates but those kept.

        like: a tensor of the sum's type where there are no terms.
        """
        frames = self._ordered(keep)
        total = like.new_zeros(self.size, *[frame.size for frame in frames])
        for plates, tensor in terms:
            names, tensor = self(tensor, plates)
            over = [axis for axis, name in enumerate(names, 1) if name not in keep]
            total = total + (tensor.sum(over) if over else tensor)
        return tuple(frame.name for frame in frames), total

    def values(self, trace, names):
        """The values of these sites of a trace: {name: (plate names, tensor)}."""
        return {name: self._value(trace.nodes[name]) for name in names}

    def _value(self, site):
        value, plates = site["value"], plates_of(site)
        event_dim = self.event_dims.get(site["name"], site["fn"].event_dim)
        if is_deterministic(site) and not plates:
            # What is reduced from a plate has lost its dimension: all that is left are the draws.
            split = value.dim() - event_dim
            if value.shape[:split].numel() == self.size:
                ones = [1] * (self.depth - 1)
                value = value.reshape(self.size, *ones, *value.shape[split:])
        return self(value, plates, event_dim)

    def _ordered(self, plates):
        frames = [self.frames[name] for name in plates if name != DRAWS]
        return sorted(frames, key=lambda frame: frame.dim)
