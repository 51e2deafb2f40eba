"""The C functions of SUNDIALS that the ``sundials4py`` wheel carries, callable from numba.

The wheel's extension module exports the whole C interface of SUNDIALS, though its documentation
speaks of the Python one alone. So all that is used is checked once, at first use: that the names
are there, and that the few fields read in its structures are where they are expected.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import llvmlite.binding as llvm
from numba import types

__all__ = ["OPERATIONS", "TESTED", "address", "require", "unavailable"]

TESTED = "7.9"
"""The version of the wheel that everything here was tried with."""

i32, i64, f64, pointer, void = types.int32, types.int64, types.float64, types.intp, types.void

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "SUNContext_Create": (i32, (i32, pointer)),
    "SUNContext_ClearErrHandlers": (i32, (pointer,)),
    "SUNContext_Free": (i32, (pointer,)),
    "N_VMake_Serial": (pointer, (i64, pointer, pointer)),
    "N_VEnableFusedOps_Serial": (i32, (pointer, i32)),
    "N_VClone": (pointer, (pointer,)),
    "N_VDestroy": (void, (pointer,)),
    "SUNDenseMatrix": (pointer, (i64, i64, pointer)),
    "SUNDenseMatrix_Data": (pointer, (pointer,)),
    "SUNMatDestroy": (void, (pointer,)),
    "SUNLinSol_Dense": (pointer, (pointer, pointer, pointer)),
    "SUNLinSolFree": (i32, (pointer,)),
    "CVodeCreate": (pointer, (i32, pointer)),
    "CVodeInit": (i32, (pointer, pointer, f64, pointer)),
    "CVodeReInit": (i32, (pointer, f64, pointer)),
    "CVodeWFtolerances": (i32, (pointer, pointer)),
    "CVodeSetUserData": (i32, (pointer, pointer)),
    "CVodeSetMaxNumSteps": (i32, (pointer, i64)),
    "CVodeSetMaxHnilWarns": (i32, (pointer, i32)),
    "CVodeSetInitStep": (i32, (pointer, f64)),
    "CVodeSetStopTime": (i32, (pointer, f64)),
    "CVodeSetLinearSolver": (i32, (pointer, pointer, pointer)),
    "CVodeSetNonlinConvCoef": (i32, (pointer, f64)),
    "CVodeSetJacFn": (i32, (pointer, pointer)),
    "CVode": (i32, (pointer, f64, pointer, pointer, i32)),
    "CVodeFree": (void, (pointer,)),
    "ERKStepCreate": (pointer, (pointer, f64, pointer, pointer)),
    "ERKStepReInit": (i32, (pointer, pointer, f64, pointer)),
    "ERKStepSetTableName": (i32, (pointer, pointer)),
    "ARKodeWFtolerances": (i32, (pointer, pointer)),
    "ARKodeSetUserData": (i32, (pointer, pointer)),
    "ARKodeSetMaxNumSteps": (i32, (pointer, i64)),
    "ARKodeSetMaxHnilWarns": (i32, (pointer, i32)),
    "ARKodeSetInitStep": (i32, (pointer, f64)),
    "ARKodeSetStopTime": (i32, (pointer, f64)),
    "ARKodeSetInterpolantType": (i32, (pointer, i32)),
    "ARKodeSetSafetyFactor": (i32, (pointer, f64)),
    "ARKodeSetErrorBias": (i32, (pointer, f64)),
    "ARKodeEvolve": (i32, (pointer, f64, pointer, pointer, i32)),
    "ARKodeGetNumSteps": (i32, (pointer, pointer)),
    "ARKodeGetLastStep": (i32, (pointer, pointer)),
    "ARKodeFree": (void, (pointer,)),
}

OPERATIONS = (
    "N_VLinearSum_Serial",
    "N_VScale_Serial",
    "N_VLinearCombination_Serial",
    "N_VScaleAddMulti_Serial",
    "N_VScaleVectorArray_Serial",
    "N_VWrmsNorm_Serial",
)
"""Vector operations for which this package has code of its own, see `vectors`."""

_ALSO = (*OPERATIONS, "N_VGetVectorID_Serial", "SUNLinSolGetType_Dense", "SUNLinSolSolve_Dense")


def __getattr__(name: str) -> Any:
    """Return a C function as numba sees it: ``sundials.CVode(...)`` in compiled code."""
    if name not in _SIGNATURES:
        raise AttributeError(name)
    returned, arguments = _SIGNATURES[name]
    return types.ExternalFunction(name, returned(*arguments))


def address(name: str) -> int:
    """Return where a C function is; 0 where there is none of this name."""
    return int(llvm.address_of_symbol(name) or 0)


def require() -> None:
    """Load the library before code that calls it is compiled, or loaded from a cache.

    To numba a missing symbol is the end of the process.
    """
    if (why := unavailable()) is not None:
        raise ImportError(why)


@cache
def unavailable() -> str | None:
    """Load the library, once, and check it; return what is amiss, or None."""
    found = find_spec("sundials4py")
    if found is None or found.origin is None:
        return (
            "the package sundials4py is not installed: pip install 'pymc_mpimap[ode]' "
            "(it has wheels for Linux x86_64, macOS arm64 and Windows)"
        )
    have = version("sundials4py")
    try:
        llvm.load_library_permanently(found.origin)
    except RuntimeError as error:
        return f"sundials4py {have} cannot be loaded: {error}"
    missing = [name for name in (*_SIGNATURES, *_ALSO) if not address(name)]
    if missing:
        return (
            f"sundials4py {have} does not export {', '.join(missing[:5])}"
            f"{' and others' if len(missing) > 5 else ''}; {TESTED} was tested, and has them"
        )
    misplaced = _misplaced()
    if misplaced is not None:
        return (
            f"sundials4py {have} lays out its {misplaced} in another way than {TESTED}, which "
            "was tested"
        )
    return None


def _misplaced() -> str | None:
    """Make a vector and a linear solver, and look for what is read and replaced in them."""

    def call(name: str, *arguments: Any, returned: Any = ctypes.c_void_p) -> Any:
        kinds = {i32: ctypes.c_int32, i64: ctypes.c_int64, pointer: ctypes.c_void_p}
        function = ctypes.CFUNCTYPE(returned, *(kinds[a] for a in _SIGNATURES[name][1]))
        return function(address(name))(*arguments)

    def word(where: int, index: int) -> int:
        return int(ctypes.c_int64.from_address(where + 8 * index).value)

    context = ctypes.c_void_p()
    values = (ctypes.c_double * 3)()
    call("SUNContext_Create", 0, ctypes.byref(context), returned=ctypes.c_int32)
    vector = call("N_VMake_Serial", 3, ctypes.byref(values), context)
    call("N_VEnableFusedOps_Serial", vector, 1, returned=ctypes.c_int32)
    matrix = call("SUNDenseMatrix", 3, 3, context)
    solver = call("SUNLinSol_Dense", vector, matrix, context)
    try:
        content, operations = word(vector, 0), word(vector, 1)
        if (word(content, 0), word(content, 2)) != (3, ctypes.addressof(values)):
            return "vectors"
        table = [word(operations, k) for k in range(VECTOR_OPERATIONS)]
        known = {address(name) for name in OPERATIONS}
        if table[0] != address("N_VGetVectorID_Serial") or not known <= set(table):
            return "table of vector operations"
        content, operations = word(solver, 0), word(solver, 2)
        ends = word(operations, 0), word(operations, LINEAR_SOLVE), word(content, 0)
        if ends != (address("SUNLinSolGetType_Dense"), address("SUNLinSolSolve_Dense"), 3):
            return "linear solver"
    finally:
        call("SUNLinSolFree", solver, returned=ctypes.c_int32)
        call("SUNMatDestroy", matrix, returned=None)
        call("N_VDestroy", vector, returned=None)
        call("SUNContext_Free", ctypes.byref(context), returned=ctypes.c_int32)
    return None


VECTOR_OPERATIONS = 45
"""The number of entries of a vector's table of operations that are searched."""

LINEAR_SOLVE = 9
"""The place of the solution with the factors in a linear solver's table of operations."""
