"""Loops of machine code: found by their jumps, and told apart from what only looks like one."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="kernels need Triton, which exists for Linux alone")

from benchmarks.cubin import Loop, instructions_of, instructions_outside_loops, loops_of

# As cuobjdump prints it: the code of an instruction follows on a line of its own.
NESTED = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;                  /* 0x00000a0000017a02 */
                                                                           /* 0x000fe40000000f00 */
        /*0010*/                   LDGSTS.E.BYPASS.128 [R9], [R20.64], P0 ;
        /*0020*/                   LDGDEPBAR ;
        /*0030*/              @!P5 BRA 0x00c0 ;
        /*0040*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0050*/                   DEPBAR.LE SB0, 0x2 ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0070*/                   HGMMA.64x64x16.F32 R24, gdesc[UR12], R24, gsb0 ;
        /*0080*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0090*/                   LDGSTS.E.BYPASS.128 [R9+0x4000], desc[UR16][R20.64], P0 ;
        /*00a0*/               @P0 BRA 0x0050 ;
        /*00b0*/                   DEPBAR.LE SB0, 0x0 ;
        /*00b8*/                   BRA P3, 0x0040 ;
        /*00c0*/              @!P1 BRA 0x0100 ;
        /*00d0*/                   STG.E [R2.64], R3 ;
        /*00e0*/                   EXIT ;
        /*0100*/                   MUFU.RCP R3, R3 ;
        /*0110*/                   BRA 0x00d0 ;
        /*0120*/                   BRA 0x0120;
        /*0130*/                   NOP;
"""


def test_loops_are_told_apart_from_code_out_of_line() -> None:
    """The jump from 0110 leads back, and yet to where no loop begins; what follows on it is never reached."""
    assert loops_of(NESTED) == [
        # IADD3, the wait for all, and the jump to 0040.
        Loop(inner=1, instructions=3, matrix=0, barriers=0, copies=0, waits=(0,)),
        Loop(inner=0, instructions=6, matrix=1, barriers=1, copies=1, waits=(2,)),
    ]
    assert instructions_outside_loops(NESTED) == 9
    assert len(instructions_of(NESTED)) == 18


def test_a_loop_with_two_ways_back_is_one() -> None:
    sass = """
        /*0000*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0010*/               @P0 BRA 0x0000 ;
        /*0020*/                   BAR.SYNC 0x0 ;
        /*0030*/              @!P1 BRA 0x0000 ;
        /*0040*/                   EXIT ;
    """
    assert loops_of(sass) == [Loop(0, 4, 1, 1, 0, ())]
    assert instructions_outside_loops(sass) == 1


def test_code_without_a_loop_and_no_code() -> None:
    straight = "  /*0000*/   CALL.REL.NOINC 0x30 ;\n  /*0010*/   EXIT ;\n  /*0030*/   RET.REL.NODEC R2 0x0 ;"
    for sass, count in ((straight, 3), ("", 0)):
        assert loops_of(sass) == []
        assert instructions_outside_loops(sass) == count


@pytest.mark.parametrize(
    ("inner", "copies", "waits", "prefetches"),
    [
        (0, 4, (2,), True),
        (0, 4, (2, 0), False),
        (0, 4, (0,), False),
        # Without copies of its own, or after a loop inside, whose copies it may wait for.
        (0, 0, (0,), True),
        (1, 4, (0,), True),
        (0, 4, (), True),
    ],
)
def test_prefetching(inner: int, copies: int, waits: tuple[int, ...], prefetches: bool) -> None:
    assert Loop(inner, 100, 8, 2, copies, waits).prefetches is prefetches
