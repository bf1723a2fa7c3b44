import json

from launch import benchmark


def test_sampling_benchmark_prints_a_table_and_a_line_of_json(capsys):
    assert benchmark.main(["sample", "--size", "tiny", "--repeats", "1", "--naive_rows", "1", "--first_picture"]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    names = ["gray encoder", "decoders", "color upsampler", "spatial upsampler", "all"]
    assert [stage["stage"] for stage in report["stages"]] == names
    for name in names:
        assert any(row.startswith(name) for row in table)
    assert all(stage["ms_per_picture"] > 0 for stage in report["stages"])
    assert report["naive_over_ours"] > 0
    assert report["first_picture_cold_secs"] > 0
    assert report["peak_memory_gib"] > 0
    assert (report["size"], report["batch_size"], report["dtype"]) == ("tiny", 1, "float32")
