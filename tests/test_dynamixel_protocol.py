"""The codec of Protocol 2.0, against the packets that the e-manual prints and against any bytes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from r3l.hardware.dynamixel import protocol
from r3l.hardware.dynamixel.protocol import BROADCAST_ID, HEADER, MAX_ID, Decoder, Instruction, Packet, encode

PRINTED = {
    "ping": (protocol.ping(1), "FF FF FD 00 01 03 00 01 19 4E"),
    "ping to all": (protocol.ping(), "FF FF FD 00 FE 03 00 01 31 42"),
    "pong of 1": (protocol.status(1, b"\x06\x04\x26"), "FF FF FD 00 01 07 00 55 00 06 04 26 65 5D"),
    "pong of 2": (protocol.status(2, b"\x06\x04\x26"), "FF FF FD 00 02 07 00 55 00 06 04 26 6F 6D"),
    "read": (protocol.read(1, 132, 4), "FF FF FD 00 01 07 00 02 84 00 04 00 1D 15"),
    "read answered": (protocol.status(1, b"\xa6\0\0\0"), "FF FF FD 00 01 08 00 55 00 A6 00 00 00 8C C0"),
    "write": (protocol.write(1, 116, b"\0\x02\0\0"), "FF FF FD 00 01 09 00 03 74 00 00 02 00 00 CA 89"),
    "write answered": (protocol.status(1), "FF FF FD 00 01 04 00 55 00 A1 0C"),
    "reg write": (
        encode(Packet(1, Instruction.REG_WRITE, b"\x68\0\xc8\0\0\0")),
        "FF FF FD 00 01 09 00 04 68 00 C8 00 00 00 AE 8E",
    ),
    "action": (encode(Packet(1, Instruction.ACTION)), "FF FF FD 00 01 03 00 05 02 CE"),
    "factory reset": (encode(Packet(1, Instruction.FACTORY_RESET, b"\x01")), "FF FF FD 00 01 04 00 06 01 A1 E6"),
    "reboot": (protocol.reboot(1), "FF FF FD 00 01 03 00 08 2F 4E"),
    "clear": (protocol.clear(1), "FF FF FD 00 01 08 00 10 01 44 58 4C 22 B1 DC"),
    "sync read": (protocol.sync_read([1, 2], 132, 4), "FF FF FD 00 FE 09 00 82 84 00 04 00 01 02 CE FA"),
    "sync read answered by 2": (protocol.status(2, b"\x1f\x08\0\0"), "FF FF FD 00 02 08 00 55 00 1F 08 00 00 BA BE"),
    "sync write": (
        protocol.sync_write(116, {1: b"\x96\0\0\0", 2: b"\xaa\0\0\0"}),
        "FF FF FD 00 FE 11 00 83 74 00 04 00 01 96 00 00 00 02 AA 00 00 00 82 87",
    ),
    "bulk read": (
        protocol.bulk_read({1: (144, 2), 2: (146, 1)}),
        "FF FF FD 00 FE 0D 00 92 01 90 00 02 00 02 92 00 01 00 1A 05",
    ),
    "bulk read answered by 1": (protocol.status(1, b"\x77\0"), "FF FF FD 00 01 06 00 55 00 77 00 C3 69"),
    "bulk read answered by 2": (protocol.status(2, b"\x24"), "FF FF FD 00 02 05 00 55 00 24 8B A9"),
    "bulk write": (
        encode(Packet(BROADCAST_ID, Instruction.BULK_WRITE, b"\x01\x20\0\x02\0\xa0\0\x02\x1f\0\x01\0\x50")),
        "FF FF FD 00 FE 10 00 93 01 20 00 02 00 A0 00 02 1F 00 01 00 50 B7 68",
    ),
}
"""Packets of the e-manual's page on Protocol 2.0, as it prints them."""

PACKETS = st.builds(
    Packet,
    st.integers(0, MAX_ID) | st.just(BROADCAST_ID),
    st.sampled_from(Instruction).map(int),
    st.binary(max_size=40) | st.lists(st.sampled_from([0xFF, 0xFD, 0x00]), max_size=40).map(bytes),
)


@pytest.mark.parametrize("name", PRINTED)
def test_packets_are_those_of_the_manual(name: str) -> None:
    ours, printed = PRINTED[name]
    assert ours == bytes.fromhex(printed)
    (packet,) = Decoder().feed(ours)
    assert encode(packet) == ours


def test_the_length_counts_stuffed_bytes_and_the_checksum_is_over_them() -> None:
    packet = protocol.write(1, 116, b"\xff\xff\xfd\x00")
    assert packet.hex(" ").startswith("ff ff fd 00 01 0a 00 03 74 00 ff ff fd fd 00")
    assert protocol.crc16(packet[:-2]) == int.from_bytes(packet[-2:], "little")


def test_a_status_tells_error_alert_and_data() -> None:
    (packet,) = Decoder().feed(protocol.status(7, b"abc", error=protocol.StatusError.ACCESS, alert=True))
    assert (packet.id, packet.error, packet.alert, packet.data) == (7, protocol.StatusError.ACCESS, True, b"abc")


@given(st.lists(PACKETS, max_size=5), st.lists(st.integers(1, 9), min_size=1, max_size=9))
@example([Packet(1, 0x55, b"\xff\xff\xfd\xfd\xff\xff\xfd")], [1])
def test_packets_come_out_as_they_went_in_however_the_stream_is_cut(packets: list[Packet], cuts: list[int]) -> None:
    stream, decoder, found = b"".join(map(encode, packets)), Decoder(), []
    at = 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        found += decoder.feed(stream[at : at + size])
        at += size
    assert found == packets
    assert decoder.finish() == []
    assert decoder.left_out == 0


@given(st.binary(max_size=200) | st.lists(st.sampled_from([HEADER, b"\x01\x04\x00U\x00", b"\xff"])).map(b"".join))
def test_any_bytes_are_taken_and_counted(noise: bytes) -> None:
    decoder = Decoder()
    found = decoder.feed(noise) + decoder.finish()
    assert decoder.left_out + sum(len(encode(packet)) for packet in found) == len(noise)
    assert not decoder.feed(b"") + decoder.finish()


@given(st.lists(PACKETS, min_size=2, max_size=4), st.data())
def test_a_damaged_packet_hides_no_other(packets: list[Packet], data: st.DataObject) -> None:
    parts = [bytearray(encode(packet)) for packet in packets]
    victim = data.draw(st.integers(0, len(parts) - 1))
    at = data.draw(st.integers(0, len(parts[victim]) - 1))
    parts[victim][at] ^= 1 << data.draw(st.integers(0, 7))
    decoder = Decoder()
    found = decoder.feed(b"".join(parts)) + decoder.finish()
    assert found == packets[:victim] + packets[victim + 1 :]


@given(st.lists(PACKETS, min_size=2, max_size=4), st.data())
def test_a_packet_cut_short_hides_no_other(packets: list[Packet], data: st.DataObject) -> None:
    parts = [encode(packet) for packet in packets]
    victim = data.draw(st.integers(0, len(parts) - 1))
    parts[victim] = parts[victim][: data.draw(st.integers(0, len(parts[victim]) - 1))]
    decoder = Decoder()
    found = decoder.feed(b"".join(parts)) + decoder.finish()
    assert found == packets[:victim] + packets[victim + 1 :]


@pytest.mark.parametrize("servo", [-1, 253, 255, 256])
def test_an_id_that_is_none_is_refused(servo: int) -> None:
    with pytest.raises(ValueError, match=r"servo id is .*, expected 0 to 252"):
        protocol.ping(servo)


def test_what_does_not_fit_a_packet_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters, expected at most"):
        protocol.write(1, 0, bytes(2000))
    with pytest.raises(ValueError, match=r"\[1, 2\] bytes, expected one size"):
        protocol.sync_write(0, {1: b"a", 2: b"bc"})
