"""A fingerprint changes with what files hold, and with nothing else."""

from __future__ import annotations

import gzip
import os

from attcl_cli.data.unchanged import fingerprint


def test_a_fingerprint_is_of_the_content_and_not_of_place_or_time(tmp_path):
    first, second = tmp_path / "a.nii", tmp_path / "b.nii"
    for path in (first, second):
        path.write_bytes(bytes(100_000))
    os.utime(second, (1, 1))
    assert fingerprint([first]) == fingerprint([second])
    assert fingerprint([first, second]) != fingerprint([first])
    second.write_bytes(bytes(50_000) + b"1" + bytes(49_999))
    assert fingerprint([first]) != fingerprint([second])


def test_a_fingerprint_sees_one_changed_byte_anywhere_in_a_gzip_file(tmp_path):
    values = bytearray(os.urandom(1000) * 500)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(values, mtime=0))
    before = fingerprint([path])
    values[3] ^= 1
    path.write_bytes(gzip.compress(values, mtime=0))
    assert fingerprint([path]) != before


def test_a_file_that_is_not_there_has_a_fingerprint(tmp_path):
    (tmp_path / "empty").touch()
    assert fingerprint([tmp_path / "none"]) != fingerprint([tmp_path / "empty"])
