"""Bytes of Kafka's records to columns of trades or quotes, to instruments, and those to bytes."""

from k2.codec.decode import Decoded, Decoder, WriterSchemas
from k2.codec.encode import encode
from k2.codec.instruments import InstrumentReader, encode_instruments
from k2.codec.raw import RAW
from k2.codec.records import Reject

__all__ = [
    "RAW",
    "Decoded",
    "Decoder",
    "InstrumentReader",
    "Reject",
    "WriterSchemas",
    "encode",
    "encode_instruments",
]
