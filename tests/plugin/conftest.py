"""The package that brings the method RANK_ONE, installed for this process and its children."""

import pytest

from tests.plugin.installed import install_rank_one


@pytest.fixture(scope="package")
def rank_one_installed(tmp_path_factory):
    site = install_rank_one(tmp_path_factory.mktemp("site"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", str(site))
        yield
