# SPDX-License-Identifier: Apache-2.0
"""The forecasting data: the published generator, the weather files, CSV errors, split, scaling, targets, batches."""

import dataclasses
import doctest
import importlib.util
import pathlib

import numpy as np
import pytest
from pvlib import iotools

from experiments.forecast import data, sources

PVLIB_DATA = pathlib.Path(importlib.util.find_spec("pvlib").origin).parent / "data"


@pytest.mark.parametrize("module", [sources, data], ids=lambda module: module.__name__)
def test_examples_in_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# -- synthetic


def test_synthetic_series_are_those_of_the_published_code():
    np.random.seed(42)  # the notebook's code, with its global generator
    freq1, freq2, offsets1, offsets2 = np.random.rand(4, 10000, 1)
    time = np.linspace(0, 1, 60)
    series = 0.5 * np.sin((time - offsets1) * (freq1 * 10 + 10))
    series += 0.2 * np.sin((time - offsets2) * (freq2 * 20 + 20))
    series += 0.1 * (np.random.rand(10000, 60) - 0.5)
    expected = series.astype(np.float32)

    task = data.synthetic_task()
    np.testing.assert_array_equal(task.train, expected[:7000])
    np.testing.assert_array_equal(task.valid, expected[7000:9000])
    np.testing.assert_array_equal(task.test, expected[9000:])


def test_synthetic_generator_leaves_the_global_generator_alone():
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    sources.synthetic(3, 4)
    assert np.random.rand() == expected


# -- weather


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("temperature", "temp_air"),
        ("dew_point", "temp_dew"),
        ("humidity", "relative_humidity"),
        ("pressure", "pressure"),
        ("wind_speed", "wind_speed"),
        ("solar", "ghi"),
    ],
)
def test_greensboro_is_what_pvlib_reads(column, name):
    frame, _ = iotools.read_tmy3(PVLIB_DATA / "723170TYA.CSV")
    series = sources.weather("greensboro", column)
    assert len(series.values) == len(series.times) == 8760
    np.testing.assert_array_equal(series.values, frame[name].to_numpy(np.float64))


def test_miami_is_what_pvlib_reads():
    frame, _ = iotools.read_tmy2(PVLIB_DATA / "12839.tm2")
    for column, name, scale in (
        ("temperature", "DryBulb", 10),
        ("dew_point", "DewPoint", 10),
        ("humidity", "RHum", 1),
        ("pressure", "Pressure", 1),
        ("wind_speed", "Wspd", 10),
        ("solar", "GHI", 1),
    ):
        np.testing.assert_allclose(sources.weather("miami", column).values * scale, frame[name], rtol=1e-12)


def test_weather_times_are_month_day_hour():
    for station in sources.STATIONS:
        times = sources.weather(station).times
        assert times[:2] == ("01-01 01:00", "01-01 02:00")
        assert times[-1] == "12-31 24:00"


def test_weather_file_with_another_hash_is_refused(monkeypatch):
    changed = dataclasses.replace(sources.STATIONS["miami"], sha256="0" * 64)
    monkeypatch.setitem(sources.STATIONS, "miami", changed)
    with pytest.raises(ValueError, match=r"12839\.tm2 has sha256 57f0de21.*expected 0000"):
        sources.weather("miami")


def test_weather_without_pvlib_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"seqjax\[experiments\]"):
        sources.weather()


def test_unknown_weather_column_names_the_columns():
    with pytest.raises(ValueError, match=r"no column 'temp'; its columns are temperature, dew_point"):
        sources.weather("miami", "temp")


# -- CSV


def write(tmp_path, text):
    path = tmp_path / "series.csv"
    path.write_text(text)
    return path


def test_csv_column_and_times_are_read(tmp_path):
    path = write(tmp_path, "time,load,price\n2024-01-01T00:00,1.5,7\n2024-01-01T01:00,-2e1,8\n")
    series = sources.read_csv(path, "load")
    assert series.values.tolist() == [1.5, -20.0]
    assert series.times == ("2024-01-01T00:00", "2024-01-01T01:00")


def test_csv_with_one_column_needs_no_name(tmp_path):
    series = sources.read_csv(write(tmp_path, "\ufeffload\n1\n2\n3\n"))
    assert (series.name, series.values.tolist(), series.times) == ("load", [1.0, 2.0, 3.0], ("0", "1", "2"))


def test_columns_are_named_by_numbers_where_that_is_said(tmp_path):
    assert sources.read_csv(write(tmp_path, "0\n1\n2\n"), "0").values.tolist() == [1.0, 2.0]
    assert sources.read_csv(write(tmp_path, "0,1\n5,6\n7,8\n"), "1").values.tolist() == [6.0, 8.0]
    assert sources.read_csv(write(tmp_path, "time,0\n2024-01-01,1\n")).values.tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a,b\n1,2\n", "c", r"has no column 'c'; its columns are a, b"),
        ("a,b\n1,2\n", None, r"several columns; choose one with --column: a, b"),
        ("a,a\n1,2\n", "a", r"more than one column 'a'"),
        ("time\n2024-01-01\n", None, r"has no column of numbers: 'time', its only one, has the times"),
        ("1.5\n2\n3\n", None, r"begins with the number 1\.5, where its header is expected; put a line"),
        ("a,b\n1,2\n,3\n4,5\n,\n6,7\n", "a", r"column 'a' has 2 gap\(s\), the first in line 3"),
        ("a,b\n1,2\nNaN,3\n,5\n", "a", r"column 'a' has 2 gap\(s\), the first in line 3"),
        ("a\n1\nwarm\n", "a", r"line 3, column 'a': 'warm' is not a finite number"),
        ("a\n1\ninf\n", "a", r"line 3, column 'a': 'inf' is not a finite number"),
        ("a,b\n1,2\n3\n", "a", r"line 3 has 1 fields, the header has 2"),
        ("a\n1\n\n3\n\n", "a", r"column 'a' has 1 gap\(s\), the first in line 3"),
        ("", None, r"is empty; expected a header"),
        (
            "date,a\n2024-01-01,1\n2024-01-02,2\n2024-01-05,3\n",
            "a",
            r"line 4: 2024-01-05 leaves a gap after 2024-01-02",
        ),
        ("date,a\n2024-01-01,1\n2024-01-02,2\n2024-01-02,3\n", "a", r"line 4: 2024-01-02 does not come after"),
    ],
)
def test_csv_faults_are_named_with_their_line(tmp_path, text, column, message):
    with pytest.raises(ValueError, match=message):
        sources.read_csv(write(tmp_path, text), column)


def test_months_of_28_to_31_days_are_no_gap(tmp_path):
    rows = "".join(f"2023-{month:02}-01,{month}\n" for month in range(1, 13))
    assert sources.read_csv(write(tmp_path, "date,a\n" + rows)).values.tolist() == list(range(1, 13))


def test_missing_file_and_directory_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file .*gone\.csv"):
        sources.read_csv(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"is a directory"):
        sources.read_csv(tmp_path)


def test_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "series.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="cannot be read as UTF-8"):
        sources.read_csv(path)


# -- split, scaling, targets


def series_of(values):
    values = np.asarray(values, np.float64)
    return sources.Series("load", "MW", values, tuple(map(str, range(len(values)))))


def test_split_is_by_time_and_no_window_reaches_over_it():
    task = data.series_task(series_of(np.arange(1000.0)), window=20)
    parts = [np.round(task.scaler.unscale(part)).astype(int) for part in (task.train, task.valid, task.test)]
    assert [(part.min(), part.max()) for part in parts] == [(0, 699), (700, 899), (900, 999)]
    assert [len(part) for part in parts] == [700 - 29, 200 - 29, 100 - 29]


def test_scaling_is_that_of_the_training_part():
    values = np.random.default_rng(0).normal(5.0, 3.0, 1000)
    task = data.series_task(series_of(values), window=20)
    assert task.scaler.mean == pytest.approx(values[:700].mean(), rel=1e-12)
    assert task.scaler.std == pytest.approx(values[:700].std(), rel=1e-12)
    np.testing.assert_allclose(task.train[0], (values[:30] - values[:700].mean()) / values[:700].std(), rtol=1e-5)


def test_later_values_change_nothing_in_training():
    values = np.random.default_rng(0).normal(size=1000)
    changed = values.copy()
    changed[700:] = 1e6
    one, other = (data.series_task(series_of(v), window=20) for v in (values, changed))
    assert one.scaler == other.scaler
    np.testing.assert_array_equal(one.train, other.train)
    assert not np.array_equal(one.valid, other.valid)


def test_too_few_rows_are_counted():
    with pytest.raises(ValueError, match=r"load has 290 rows, too few for a window of 20 .*300 rows are enough"):
        data.series_task(series_of(np.arange(290.0)), window=20)
    data.series_task(series_of(np.arange(300.0)), window=20)


def test_constant_series_is_refused():
    with pytest.raises(ValueError, match=r"constant \(3\)"):
        data.series_task(series_of(np.full(1000, 3.0)), window=20)


def test_a_constant_that_rounding_spreads_is_constant():
    with pytest.raises(ValueError, match=r"constant \(1\.1\)"):
        data.series_task(series_of(np.full(1000, 1.1)), window=20)


@pytest.mark.parametrize(("scale", "std"), [(1e200, "inf"), (1e308, "inf|nan"), (1e-200, "0")])
def test_a_series_without_a_usable_deviation_is_refused(scale, std):
    values = scale * np.random.default_rng(0).uniform(0.5, 1.0, 1000)
    with pytest.raises(ValueError, match=rf"load cannot be scaled: .* is ({std}), .*another unit"):
        data.series_task(series_of(values), window=20)


def test_target_of_every_step_is_the_next_ten_values():
    series = np.random.default_rng(0).normal(size=(3, 15)).astype(np.float32)
    made = data.targets(series, 5)
    expected = np.empty((3, 5, 10), np.float32)  # as the notebook builds them
    for step_ahead in range(1, 11):
        expected[..., step_ahead - 1] = series[:, step_ahead : step_ahead + 5]
    np.testing.assert_array_equal(made, expected)


# -- batches


def test_batch_is_a_function_of_seed_and_step():
    task = data.synthetic_task()
    options = {"size": 32, "seed": 3}
    alone = data.batch(task.train, 50, slice(None), step=300, **options)
    for step in (0, 299, 301):
        data.batch(task.train, 50, slice(None), step=step, **options)
    again = data.batch(task.train, 50, slice(None), step=300, **options)
    np.testing.assert_array_equal(alone[0], again[0])
    np.testing.assert_array_equal(alone[1], again[1])
    other = data.batch(task.train, 50, slice(None), size=32, seed=4, step=300)
    assert not np.array_equal(alone[0], other[0])


def test_an_epoch_visits_every_window_once():
    series = np.arange(12.0, dtype=np.float32)[:, None] + np.zeros(15, np.float32)
    for epoch in (0, 1):
        seen = [data.batch(series, 5, slice(None), size=4, seed=0, step=3 * epoch + i)[0][0, :, 0] for i in range(3)]
        assert sorted(np.concatenate(seen).tolist()) == list(range(12))


def test_batch_is_time_major_and_strided_targets_are_at_3_5_7():
    series = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32)
    xs, ys = data.time_major(series, 10, data.POSITIONS["[3::2]"])
    assert (xs.shape, xs.dtype, ys.shape, ys.dtype) == ((10, 8, 1), np.float32, (4, 8, 10), np.float32)
    np.testing.assert_array_equal(xs[7, 2], series[2, 7:8])
    np.testing.assert_array_equal(ys[1, 2], series[2, 6:16])  # the second output ends at step 5
