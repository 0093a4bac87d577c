"""Logs whose files were written with other schemas: their schemas decide what is refused, their values what is lost."""

import json

import pytest
from log_examples import RECORDS, changed, foreign, read_all, whole_file_fault


def retyped(name, kind):
    return changed(lambda fields: [{**field, "type": kind} if field["name"] == name else field for field in fields])


def added(kind):
    return changed(lambda fields: [*fields, {"name": "extra", "type": kind}])


def test_a_field_that_may_be_null_is_read_wherever_it_is_not(tmp_path):
    """Each time anew: a verdict by a sample of the union would differ from one opening to the next."""
    foreign(tmp_path, retyped("user_id", ["null", "string"]), RECORDS)
    for _ in range(40):
        assert read_all(tmp_path, max_records=10**6)[::2] == (RECORDS, [])


def test_a_null_that_cannot_be_read_costs_its_block(tmp_path):
    with_null = [{**record, "user_id": None} if i == 300 else record for i, record in enumerate(RECORDS)]
    foreign(tmp_path, retyped("user_id", ["null", "string"]), with_null)
    records, _, (fault,) = read_all(tmp_path)
    lost = [i for i, record in enumerate(RECORDS) if record not in records]
    assert lost == list(range(lost[0], lost[-1] + 1))
    assert lost[0] <= 300 <= lost[-1]
    assert len(lost) < 100
    assert "corrupt block" in fault.reason


def test_a_long_is_a_long_whatever_its_writer_takes_it_for(tmp_path):
    foreign(tmp_path, retyped("time_ms", {"type": "long", "logicalType": "timestamp-millis"}), RECORDS)
    assert read_all(tmp_path)[::2] == (RECORDS, [])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("freshet.Action", "record freshet.Action holds itself"),
        (["null", "freshet.Action"], "record freshet.Action holds itself"),
        ([], "field 'extra': a union without branches"),
        ({"type": "enum", "name": "E", "symbols": []}, "field 'extra': enum freshet.E has no symbols"),
        (json.loads('{"type": "array", "items": ' * 600 + '"int"' + "}" * 600), "nested too deeply"),
    ],
    ids=["itself", "itself or null", "empty union", "empty enum", "deep"],
)
def test_a_schema_without_values_or_end_is_one_fault_for_the_file(tmp_path, kind, why):
    path = foreign(tmp_path, added(kind), [])
    path.write_bytes(path.read_bytes() + b"\x02\x02\x00" + b"\x02" * 200_000)
    assert why in whole_file_fault(tmp_path, path).reason
