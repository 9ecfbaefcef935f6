"""Test classes for new methods and new formats: what every one of them must hold.

A subclass says a few things about its method or format, and inherits the tests; pytest collects it
like any other class whose name begins with ``Test``. Needs pytest and hypothesis
(``pip install 'nola-edge[test]'``), which nothing else of the package imports.
"""

from nola_edge.extras import explained

try:
    import hypothesis  # noqa: F401
    import pytest
except ModuleNotFoundError as error:
    raise explained(error, "nola_edge.testing", "test") from None

for _module in (
    "adapter_factors",
    "adapter_merging",
    "adapter_refusals",
    "base_contract",
    "checks",
):
    pytest.register_assert_rewrite(f"nola_edge.testing.{_module}")

from nola_edge.testing.adapter_contract import AdapterContract  # noqa: E402
from nola_edge.testing.base_contract import BaseContract  # noqa: E402
from nola_edge.testing.files import AdapterFiles  # noqa: E402

__all__ = ["AdapterContract", "AdapterFiles", "BaseContract"]
