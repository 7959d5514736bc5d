import pickle

from coterie.errors import LONGEST_MESSAGE, DataError


def test_a_message_that_quotes_without_end_keeps_its_beginning_and_its_end() -> None:
    error = DataError(f"labels.csv, row 2: '{'x' * 30_000}' is no label")
    message = str(error)
    assert message.startswith("labels.csv, row 2: 'xxx")
    assert message.endswith("xxx' is no label")
    assert len(message) == LONGEST_MESSAGE + len(" … ")
    assert str(pickle.loads(pickle.dumps(error))) == message


def test_a_message_of_usual_length_stays_as_it_is() -> None:
    message = "x" * LONGEST_MESSAGE
    assert str(DataError(message)) == message
