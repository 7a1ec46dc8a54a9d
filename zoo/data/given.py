"""Data as a user gives them: a set's name, rows, or a DataSet."""

from zoo.data import sets
from zoo.data.dataset import DataSet, as_rows, check_rows
from zoo.errors import require


def as_dataset(data, binary=False):
    """A `DataSet` from a set's name, a `DataSet`, or a tensor or array of rows.

    data: a name, a DataSet, (n, d) rows, or a tuple (train, test) of such rows; rows without
    test rows are held out from themselves.  binary: threshold the named sets at 0.5.
    Raises ZooError where the rows are no finite (n, d) block of at least two rows.
    """
    if isinstance(data, str):
        data = sets.load(data)
        data = data.binarized() if binary else data
    elif not isinstance(data, DataSet):
        train, test = data if isinstance(data, tuple) and len(data) == 2 else (data, data)
        data = DataSet("own data", as_rows(train), as_rows(test))
    else:
        data = data.map(as_rows)
    check_rows(data.train, "train", at_least=2)
    check_rows(data.test, "test", at_least=1)
    require(
        data.test.shape[-1] == data.width,
        f"test rows have {data.test.shape[-1]} columns, train rows {data.width}",
    )
    return data
