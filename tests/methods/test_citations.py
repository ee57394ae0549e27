"""What to cite: each method of ours has a publication."""

import subprocess
import sys

import pytest

from attcl_cli.methods import METHODS
from attcl_cli.methods.citations import references
from attcl_cli.methods.settings import settings_of


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS.built_in(name)])
def test_each_method_has_a_reference_with_authors_and_title(method):
    assert references(method)
    for reference in references(method):
        authors, _, rest = reference.partition(". ")
        assert authors and len(rest) > 20


@pytest.mark.parametrize("variant", settings_of("plave").variants)
def test_an_ancestor_is_cited_before_the_method_that_it_is_a_variant_of(variant):
    own, *others = references("plave", variant)
    assert others == [*references("plave")] and own not in others
    assert ("re-specified" in own) == (variant == "auto-gan")


def test_a_method_of_another_package_has_none():
    assert references("of-another-package") == ()


def test_citations_load_no_torch():
    code = "import sys, attcl_cli.methods.citations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
