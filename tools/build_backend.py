"""The build backend of the wheel: maturin, after the gRPC modules and the CPU kernels were made (they are not in git)."""

from typing import Any

import maturin
from build_kernels import build_kernels
from generate_proto import generate

get_requires_for_build_wheel = maturin.get_requires_for_build_wheel
get_requires_for_build_editable = maturin.get_requires_for_build_editable
get_requires_for_build_sdist = maturin.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable
build_sdist = maturin.build_sdist


def build_wheel(*arguments: Any, **options: Any) -> str:
    """As PEP 517."""
    generate()
    build_kernels()
    return maturin.build_wheel(*arguments, **options)


def build_editable(*arguments: Any, **options: Any) -> str:
    """As PEP 660."""
    generate()
    build_kernels()
    return maturin.build_editable(*arguments, **options)
