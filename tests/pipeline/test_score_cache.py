"""The score cache: many writers, parts that are merged, damaged, removed or of another teacher."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pad_fast.pipeline.score import cache, cache_part
from pad_fast.pipeline.score.cache import ScoreCache

WRITER = """
import sys
from pathlib import Path
from pad_fast.pipeline.score.cache import ScoreCache

own, other, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
cache = ScoreCache(folder)
for step in range(60):
    cache.add({cache.key("logp", [writer, step]): [float(writer), step] for writer in (own, 9)})
    assert cache.find([cache.key("logp", [own, step])])
    if step == 10:
        (folder / f"started-{own}").touch()
        while not (folder / f"started-{other}").exists():
            pass
"""


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(cache_part.NAMES))


def filled(folder: Path, *numbers: float) -> ScoreCache:
    found = ScoreCache(folder)
    for number in numbers:
        found.add({found.key("logp", [int(number)]): [number]})
    return found


def values(folder: Path, count: int) -> list[float | None]:
    """What a new reader finds of the numbers of :func:`filled` up to ``count``."""
    fresh = ScoreCache(folder)
    found = fresh.find([fresh.key("logp", [number]) for number in range(count)])
    return [found.get(fresh.key("logp", [number]), [None])[0] for number in range(count)]


def test_numbers_come_back_to_the_last_bit(tmp_path):
    first, numbers = ScoreCache(tmp_path), [-0.1, 1e-300, -745.5, 0.1 + 0.2]
    first.add({first.key("choice", [1, 2], [3]): numbers})
    assert ScoreCache(tmp_path).find([first.key("choice", [1, 2], [3])]) == {
        first.key("choice", [1, 2], [3]): numbers
    }


def test_a_key_tells_apart_all_that_changes_a_number(tmp_path):
    some = ScoreCache(tmp_path, "transformers float32 weights-a")
    other = ScoreCache(tmp_path, "transformers bfloat16 weights-a")
    keys = [
        some.key("logp", [1, 2], [3]),
        some.key("logp", [1], [2, 3]),  # the same tokens, another border
        some.key("logp", [1, 2, 3]),
        some.key("choice", [1, 2], [3]),
        some.key("logp", [1, 2], [4]),
        other.key("logp", [1, 2], [3]),
    ]
    assert len(set(keys)) == len(keys)


def test_a_gap_overwrites_nothing(tmp_path):
    filled(tmp_path, 0.0, 1.0, 2.0)
    parts(tmp_path)[0].unlink()
    filled(tmp_path, 3.0)
    assert len(parts(tmp_path)) == 3
    assert values(tmp_path, 4).count(None) == 1
    assert values(tmp_path, 4)[3] == 3.0


def test_equal_parts_are_one(tmp_path):
    filled(tmp_path, 1.0)
    filled(tmp_path, 1.0)
    assert len(parts(tmp_path)) == 1


def test_many_parts_become_few(tmp_path):
    count = 3 * cache.MERGED + 5
    filled(tmp_path, *range(count))
    assert len(parts(tmp_path)) <= cache.MERGED
    assert values(tmp_path, count) == list(range(count))
    assert {path.suffix for path in tmp_path.iterdir()} == {".sqlite"}


def test_a_merge_that_was_killed_loses_nothing(tmp_path, monkeypatch):
    """The merged part is complete before the first of the others is removed."""

    own = filled(tmp_path, *range(cache.MERGED - 1))
    removed = []
    real = Path.unlink

    def kill_at_the_first_part(self, missing_ok=False):
        if self.suffix == ".sqlite":
            removed.append(self)
            raise KeyboardInterrupt
        real(self, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", kill_at_the_first_part)
        with pytest.raises(KeyboardInterrupt):
            own.add({own.key("logp", [cache.MERGED - 1]): [float(cache.MERGED - 1)]})
    assert removed
    assert values(tmp_path, cache.MERGED) == list(range(cache.MERGED))


def test_two_processes_write_at_a_time(tmp_path):
    """Each adds 60 parts and merges what it finds, also the other's; both add the same ones too."""
    command = [sys.executable, "-c", WRITER]
    writers = [
        subprocess.Popen([*command, *map(str, pair), str(tmp_path)], stderr=subprocess.PIPE)
        for pair in ((1, 2), (2, 1))
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert (writer.returncode, errors.decode()) == (0, "")
    found = ScoreCache(tmp_path)
    for writer in (1, 2):
        keys = {found.key("logp", [writer, step]): [float(writer), step] for step in range(60)}
        assert found.find(keys) == keys
    assert len(found.find([found.key("logp", [9, step]) for step in range(60)])) == 60
    assert len(parts(tmp_path)) < 3 * cache.MERGED
    assert not list(tmp_path.glob("*.damaged"))


@pytest.mark.parametrize("how", ["cut", "flipped", "emptied", "other"])
def test_a_damaged_part_is_set_aside(tmp_path, caplog, how):
    filled(tmp_path, 0.0, 1.0)
    broken = parts(tmp_path)[0]
    content = bytearray(broken.read_bytes())
    place = content.rindex(b"\xf0\x3f") if b"\xf0\x3f" in content else len(content) - 3
    changed = {"cut": content[: len(content) // 2], "emptied": b"", "other": b"not a database"}
    content[place] ^= 1
    broken.write_bytes(changed.get(how, content))
    with caplog.at_level(logging.WARNING):
        assert values(tmp_path, 2).count(None) == 1
    assert f"{broken} is damaged" in caplog.text
    assert "set aside as" in caplog.text
    assert not broken.exists()
    assert broken.with_name(f"{broken.name}.damaged").exists()
    missing = values(tmp_path, 2).index(None)
    filled(tmp_path, float(missing))
    assert values(tmp_path, 2) == [0.0, 1.0]


def test_damage_behind_the_check_is_set_aside_too(tmp_path, caplog):
    """What was whole when it was opened, and is not when it is read."""
    reader = ScoreCache(tmp_path)
    keys = [reader.key("logp", [number]) for number in range(5_000)]
    reader.add({key: [1.0] for key in keys})
    assert reader.find(keys[:1])
    (part,) = parts(tmp_path)
    part.write_bytes(b"x" * part.stat().st_size)
    with caplog.at_level(logging.WARNING):
        assert reader.find(keys) == {}
    assert "is damaged" in caplog.text
    assert parts(tmp_path) == []


def test_a_merge_leaves_what_is_damaged(tmp_path, monkeypatch):
    def damaged(self):
        raise cache_part.DamagedPart("database disk image is malformed")
        yield

    monkeypatch.setattr(cache_part.Part, "entries", damaged)
    filled(tmp_path, *range(cache.MERGED + 1))
    assert len(parts(tmp_path)) == cache.MERGED + 1
    assert values(tmp_path, cache.MERGED) == list(range(cache.MERGED))


def test_a_part_may_go_in_the_middle(tmp_path, caplog):
    reader = filled(tmp_path, 0.0, 1.0)
    keys = [reader.key("logp", [number]) for number in (0, 1)]
    assert len(reader.find(keys)) == 2
    parts(tmp_path)[0].unlink()
    assert len(reader.find(keys)) == 1
    shutil.rmtree(tmp_path)
    assert reader.find(keys) == {}
    reader.add({keys[0]: [0.0]})
    assert values(tmp_path, 1) == [0.0]
    assert caplog.text == ""


def test_what_a_killed_writer_left_goes_in_the_end(tmp_path):
    tmp_path.joinpath(".old.tmp").touch()
    tmp_path.joinpath(".new.tmp").touch()
    long_ago = time.time() - cache.STALE - 1
    os.utime(tmp_path / ".old.tmp", (long_ago, long_ago))
    filled(tmp_path, 1.0)
    assert {path.name for path in tmp_path.glob(".*")} == {".new.tmp"}


def test_a_folder_of_ones_own_is_tidied_at_once(tmp_path):
    cache = ScoreCache(tmp_path)
    cache.add({cache.key("a", [1]): [0.5]})
    (tmp_path / ".abc.tmp").write_bytes(b"half")
    cache.tidy(60)
    assert (tmp_path / ".abc.tmp").exists()
    cache.tidy(0)
    assert not (tmp_path / ".abc.tmp").exists()
    assert cache.find([cache.key("a", [1])])


def test_a_full_disk_is_known_as_such(tmp_path, monkeypatch):
    """SQLite has words of its own for it; a limit of five pages stands in for the disk."""
    connect = cache_part._connect

    def small(path, options):
        connection = connect(path, options)
        connection.execute("PRAGMA max_page_count = 5")
        return connection

    monkeypatch.setattr(cache_part, "_connect", small)
    entries = sorted((hashlib.sha256(b"%d" % i).digest(), bytes(8)) for i in range(2_000))
    with pytest.raises(OSError, match="No space left on device") as caught:
        cache_part.write_part(tmp_path, entries)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
