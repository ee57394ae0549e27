"""The registry of methods: our own, those of other packages, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import toy_method
from helpers import fresh_python

from attcl_cli.errors import AttclError, UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.settings import resolve

OURS = list(METHODS)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`installed(name=path)` installs a package that brings these methods."""

    def install(**methods: str) -> None:
        monkeypatch.setattr(toy_method, "ENTRY_POINTS", methods)
        toy_method.install(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_our_own_methods_have_titles_and_say_what_they_need():
    assert OURS[:3] == ["attcl-gan", "plave", "unet"]
    assert METHODS.title("attcl-gan") == "AttCL-GAN"
    assert METHODS.listing().startswith(
        "attcl-gan (all that a case has, or one source), plave (all that a case has), "
        "unet (the yardstick: all that a case has)"
    )
    for name in OURS:
        assert f"{name} (" in METHODS.listing()
        assert METHODS.title(name) != name


def test_a_name_of_nothing_is_in_no_registry():
    assert "nothing" not in METHODS
    with pytest.raises(KeyError):
        METHODS["nothing"]


def test_a_method_of_another_package_is_listed_after_our_own(installed):
    installed(toy="toy_method:Toy")
    assert list(METHODS) == [*OURS, "toy"]
    assert len(METHODS) == len(OURS) + 1
    assert METHODS["toy"] is toy_method.Toy
    assert METHODS.title("toy") == "toy"
    assert METHODS.listing().endswith(", toy")


def test_another_package_cannot_take_a_name_of_ours(installed):
    installed(**{"attcl-gan": "toy_method:Toy"})
    assert METHODS["attcl-gan"] is AttclGan
    assert len(METHODS) == len(OURS)


@pytest.mark.parametrize("path", ["no_such_module:Toy", "toy_method:NoSuchClass"])
def test_a_method_that_cannot_be_loaded_is_an_error_that_names_it_and_stops_no_other(
    path, installed
):
    installed(broken=path)
    with pytest.raises(AttclError, match="method broken: ") as caught:
        resolve(preset="tiny", method="broken")
    assert caught.value.code == "method-not-loadable"
    assert resolve(preset="tiny", method="plave").method == "plave"


def test_an_unknown_method_lists_those_of_other_packages_too(installed):
    installed(toy="toy_method:Toy")
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", method="toi")
    assert caught.value.code == "unknown-method"
    assert ", ".join([*OURS, "toy"]) in caught.value.message
    assert caught.value.hint == "did you mean 'toy'?"


def test_the_registry_loads_neither_torch_nor_numpy_nor_a_method():
    loaded = fresh_python(
        "-c",
        "import sys; from attcl_cli.methods import METHODS\n"
        "assert 'plave' in METHODS and METHODS.listing() and METHODS.title('plave')\n"
        "print(*METHODS, *sorted({'torch', 'numpy', 'attcl_cli.methods.plave'} & set(sys.modules)))",
    )
    assert loaded.split() == OURS
