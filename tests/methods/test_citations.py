"""What to cite: each method of ours has a publication."""

import subprocess
import sys

import pytest

from attcl_cli.methods import METHODS
from attcl_cli.methods.citations import references


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS.built_in(name)])
def test_each_method_has_a_reference_with_authors_and_title(method):
    assert references(method)
    for reference in references(method):
        authors, _, rest = reference.partition(". ")
        assert authors and len(rest) > 20


def test_a_method_of_another_package_has_none():
    assert references("of-another-package") == ()


def test_citations_load_no_torch():
    code = "import sys, attcl_cli.methods.citations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
