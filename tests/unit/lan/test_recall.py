"""What a client process keeps for the one that takes its place."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedmoe.lan.recall import Recall


def test_the_next_process_knows_the_node_and_the_debt(tmp_path: Path) -> None:
    one = Recall(tmp_path, 3)
    assert (one.node(), one.owed()) == (None, None)
    one.keep_node(2**63 + 1)
    one.owe(b"message")
    other, stranger = Recall(tmp_path, 3), Recall(tmp_path, 4)
    assert (other.node(), other.owed()) == (2**63 + 1, b"message")
    assert (stranger.node(), stranger.owed()) == (None, None)
    other.paid()
    assert (one.node(), one.owed()) == (2**63 + 1, None)
    one.owe(b"message")
    one.keep_node(5)  # of another server, to which nothing is owed
    assert (other.node(), other.owed()) == (5, None)
    other.forget()
    assert (one.node(), one.owed()) == (None, None)


def test_a_key_that_a_node_has_made_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP384R1())
    Recall(tmp_path, 3).keep_node(7, (private, private.public_key()))
    recall = Recall(tmp_path, 3)
    kept_keys = recall.keys()
    assert recall.node() == 7 and kept_keys is not None
    assert kept_keys[0].private_numbers() == private.private_numbers()
    assert kept_keys[1].public_numbers() == private.public_key().public_numbers()
    (kept,) = tmp_path.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    recall.forget()
    assert recall.keys() is None
    recall.keep_node(7)
    assert recall.keys() is None  # its key is its owner's affair


def test_nothing_that_can_be_read_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "client-0.node").write_text("a node")
    (tmp_path / "client-0.owed").write_bytes(b"")  # power was lost while it was written
    recall = Recall(tmp_path, 0)
    assert (recall.node(), recall.owed()) == (None, None)


def test_a_disk_that_refuses_ends_nobody(tmp_path: Path) -> None:
    recall = Recall(tmp_path / "no folder", 0)
    recall.keep_node(1)
    recall.owe(b"message")
    recall.paid()
    recall.forget()
    assert (recall.node(), recall.owed()) == (None, None)


def test_two_processes_cannot_be_one_client(tmp_path: Path) -> None:
    first, second = Recall(tmp_path, 0), Recall(tmp_path, 0)
    assert first.claim() and not second.claim()
    neighbour = Recall(tmp_path, 1)
    assert neighbour.claim()
    first.release()  # as when its process ends, however that comes about
    assert second.claim() and not first.claim()
    second.release()
    neighbour.release()
    assert Recall(tmp_path / "no folder", 0).claim()
