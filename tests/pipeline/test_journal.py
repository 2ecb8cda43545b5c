"""The dispatcher's journal."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.journal import (
    CheckpointRecord,
    Drop,
    EndRecord,
    Journal,
    PlacedRecord,
    Put,
    SegmentRecord,
    TextRecord,
    TokensRecord,
)


def segment(uid: int, index: int) -> SegmentRecord:
    return SegmentRecord(uid, index, "text", b"", 0, 4, "sentence", 0)


def tokens(uid: int, index: int, first: int, count: int = 3, final: bool = False) -> TokensRecord:
    return TokensRecord(uid, index, first, count, b"t" * count, 0.1, (), final)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def test_records_come_back_in_order_of_segment_and_number(journal: Journal) -> None:
    journal.write([Put(tokens(1, 0, 3)), Put(tokens(1, 0, 0)), Put(segment(1, 1)), Put(segment(1, 0))])
    loaded = journal.load(1)
    assert [record.index for record in loaded if isinstance(record, SegmentRecord)] == [0, 1]
    assert [record.first_token for record in loaded if isinstance(record, TokensRecord)] == [0, 3]


def test_a_record_with_the_same_key_replaces_the_earlier_one(journal: Journal) -> None:
    journal.write([Put(CheckpointRecord(1, 0, 100, 1, b"old", (), False))])
    journal.write([Put(CheckpointRecord(1, 0, 200, 2, b"new", (), False))])
    assert [record.samples for record in journal.load(1) if isinstance(record, CheckpointRecord)] == [200]


def test_an_empty_final_chunk_does_not_replace_the_tokens_before_it(journal: Journal) -> None:
    journal.write([Put(tokens(1, 0, 0)), Put(tokens(1, 0, 3, 0, final=True))])
    assert [record.tokens for record in journal.load(1) if isinstance(record, TokensRecord)] == [3, 0]


def test_drop_forgets_only_what_it_names(journal: Journal) -> None:
    journal.write([Put(segment(uid, index)) for uid in (1, 2) for index in range(4)])
    journal.write([Put(PlacedRecord(1, 3, 0, 0, 0, 1, (12,))), Put(TextRecord(1, 0, "text")), Put(EndRecord(1))])
    journal.write([Drop(1, (SegmentRecord,), 0, 2)])
    assert [type(record).__name__ for record in journal.load(1)] == [
        "EndRecord",
        "PlacedRecord",
        "SegmentRecord",
        "TextRecord",
    ]
    assert len(journal.load(2)) == 4
    journal.write([Drop(1)])
    assert journal.utterances() == [2]


def test_a_failed_batch_leaves_nothing_behind(journal: Journal) -> None:
    with pytest.raises(OverflowError):
        journal.write([Put(segment(1, 0)), Put(segment(2**70, 0))])
    assert journal.count() == 0


def test_a_full_disk_raises_and_the_journal_goes_on_afterwards(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal._db.execute("PRAGMA max_page_count = 8")
    with pytest.raises(sqlite3.Error):
        journal.write([Put(TextRecord(1, index, "x" * 1000)) for index in range(1000)])
    assert journal.count() == 0
    journal._db.execute("PRAGMA max_page_count = 100000")
    journal.write([Put(segment(7, 0))])
    assert journal.load(7) == [segment(7, 0)]


def test_what_a_killed_process_wrote_is_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline.journal import *;"
        "journal = Journal(Path(sys.argv[1]));"
        "[journal.write([Put(TextRecord(1, n, 'text'))]) for n in range(100)];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert len(Journal(path).load(1)) == 100


def test_set_aside_records_are_out_of_use(journal: Journal) -> None:
    journal.write([Put(segment(1, 0)), Put(segment(2, 0))])
    journal.set_aside(1, "it kills")
    assert journal.utterances() == [2]


def test_facts_are_numbers_that_stay(journal: Journal) -> None:
    assert journal.fact("epoch") == 0
    journal.set_fact("epoch", 5)
    assert journal.fact("epoch") == 5
