"""What the pictures show: the points, bars, limits, counts and names in them, read back from the figures."""

from __future__ import annotations

import io
import sys
import threading
import time

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from diffusion_fast import plotting
from diffusion_fast.plotting import style
from diffusion_fast.plotting.rows import limits


def png_size(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.tell()


def texts(owner):
    """Everything that is written in a figure or panel."""
    return " | ".join(text.get_text() for text in owner.findobj(lambda a: hasattr(a, "get_text")))


def rows_of(collection):
    """The points of a scatter plot, (n, 2) or (n, 3), as drawn."""
    if hasattr(collection, "_offsets3d"):
        return np.stack([np.asarray(part) for part in collection._offsets3d], axis=1)
    return np.asarray(collection.get_offsets())


def colors_of(collection):
    """The color of each point in the order of rows_of; get_facecolors of 3-D points has another one."""
    return [to_hex(color).upper() for color in collection._facecolors[:, :3]]


def in_order(rows):
    return rows[np.lexsort(rows.T)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- samples beside data


@pytest.mark.parametrize("dim", [2, 3])
def test_points_are_the_rows_given(rng, dim):
    data, samples = rng.standard_normal((300, dim)), rng.standard_normal((200, dim))
    figure = plotting.compare_samples(
        torch.from_numpy(samples), data, columns=list("abc")[:dim], title="both"
    )
    left, right = figure.axes
    inside = samples[((samples >= limits(data)[0]) & (samples <= limits(data)[1])).all(axis=1)]
    assert np.array_equal(in_order(rows_of(left.collections[0])), in_order(data))
    assert np.array_equal(in_order(rows_of(right.collections[0])), in_order(inside))
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    assert [left.get_xlabel(), left.get_ylabel()] == ["a", "b"]
    assert [left.get_title(), right.get_title(), figure.get_suptitle()] == ["data", "samples", "both"]
    assert ("200 rows" in texts(right)) and ("300 rows" in texts(left))


def test_many_rows_are_subsampled_and_the_picture_says_so(rng):
    data = rng.standard_normal((6000, 2))
    figure = plotting.compare_samples(data, data)
    drawn = rows_of(figure.axes[1].collections[0])
    assert 4990 <= len(drawn) <= 5000  # a few may be outside
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in data}
    assert "5,000 of 6,000 rows drawn" in texts(figure)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_outlying_samples_do_not_stretch_the_axes_and_are_counted(rng, dim):
    data = rng.uniform(-1, 1, (1000, dim))
    samples = rng.uniform(-1, 1, (1000, dim))
    samples[:7, 0], samples[7, -1] = 1e6, np.nan
    figure = plotting.compare_samples(samples, data)
    assert "1,000 rows, 8 outside (1 not finite)" in texts(figure)
    for axes in figure.axes:
        assert -1.2 < axes.get_xlim()[0] < -0.99 < 0.99 < axes.get_xlim()[1] < 1.2
    figure.savefig(io.BytesIO())


def test_limits_leave_out_lone_rows_of_the_data_but_no_cluster(rng):
    rows = rng.standard_normal((10_000, 1))
    assert np.ravel(limits(rows)) == pytest.approx([rows.min(), rows.max()], abs=0.5)
    rows[0] = 1e9
    assert limits(rows)[1][0] < 10
    rows[:100] = 50 + rng.standard_normal((100, 1))  # one percent is part of the data
    assert limits(rows)[1][0] > 52
    assert np.ravel(limits(np.full((9, 1), 3.0))).tolist() == pytest.approx([2.7, 3.3])
    assert np.ravel(limits(np.zeros((1, 1)))).tolist() == [-1, 1]
    few = np.zeros((5000, 1))
    few[:3] = [[-2.0], [1.0], [5.0]]  # nearly all rows equal: the others are still seen
    assert limits(few)[0][0] < -2 and limits(few)[1][0] > 5


def test_more_than_three_columns_are_said_in_the_title(rng):
    data = rng.standard_normal((50, 5))
    assert (
        plotting.compare_samples(data, data, title="mine").get_suptitle() == "mine\nfirst three of 5 columns"
    )
    chain = rng.standard_normal((4, 50, 5))
    assert plotting.chain_strip(chain).get_suptitle() == "first three of 5 columns"


def test_histogram_heights_are_densities_of_all_rows(rng):
    data, samples = rng.standard_normal((5000, 1)), 3 * rng.standard_normal((4000, 1))
    axes = plotting.compare_samples(samples, data).axes[0]
    for patch, rows in zip(axes.patches, (data, samples), strict=True):
        low, high = axes.get_xlim()
        corners = patch.get_xy()
        edges = np.unique(corners[:, 0])
        expected, _ = np.histogram(rows, edges)
        width = (high - low) / (len(edges) - 1)
        assert corners[:, 1].max() == pytest.approx(expected.max() / (len(rows) * width))


def test_a_true_density_is_drawn_over_the_histogram(rng):
    def normal(x):
        return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)

    rows = rng.standard_normal((500, 1))
    figure = plotting.compare_samples(rows, rows, density=normal)
    (line,) = figure.axes[0].lines
    assert np.array_equal(line.get_ydata(), normal(line.get_xdata()))
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == figure.axes[0].get_xlim()
    assert "true density" in texts(figure)


@pytest.mark.parametrize("dim", [2, 3])
def test_labels_give_each_class_its_color_in_both_panels(rng, dim):
    rows, labels = rng.standard_normal((400, dim)), rng.integers(0, 3, 400)
    names = ["_under", "$b$", "c"]
    figure = plotting.compare_samples(
        rows, rows, data_labels=labels, sample_labels=torch.from_numpy(labels), classes=names
    )
    kept = in_order(rows)
    for axes in figure.axes:
        (points,) = axes.collections
        order = np.lexsort(rows_of(points).T)
        assert np.array_equal(rows_of(points)[order], kept)
        assert np.array(colors_of(points))[order].tolist() == [
            style.COLORS[k] for k in labels[np.lexsort(rows.T)]
        ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert not any(text.get_parse_math() for text in legend.get_texts())
    assert [to_hex(handle.get_color()).upper() for handle in legend.legend_handles] == list(style.COLORS[:3])


def test_beyond_eight_classes_the_marker_changes(rng):
    rows, labels = rng.standard_normal((500, 2)), np.arange(500) % 10
    figure = plotting.compare_samples(rows, rows, data_labels=labels)
    first, second = figure.axes[0].collections
    assert len(rows_of(first)) == 400 and len(rows_of(second)) == 100
    assert not np.array_equal(first.get_paths()[0].vertices, second.get_paths()[0].vertices)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(k) for k in range(10)]
    assert len(figure.axes[1].collections) == 1  # samples without labels keep their own color


def test_histograms_by_class_hold_the_shares_of_the_classes(rng):
    labels = (rng.random(4000) < 0.25).astype(int)
    rows = (rng.uniform(0, 1, 4000) + 2 * labels)[:, None]
    figure = plotting.compare_samples(rows, rows, data_labels=labels, sample_labels=labels)
    assert len(figure.axes) == 2
    for patch, k in zip(figure.axes[0].patches, (0, 1), strict=True):
        x, y = patch.get_xy().T
        area = float(np.sum(np.abs(np.diff(x)) * y[:-1] * (np.diff(y) == 0)))
        assert area == pytest.approx(np.mean(labels == k), rel=1e-6)


def test_okabe_and_ito_s_colors_differ_for_all_kinds_of_color_vision():
    """Also without red or green cones: the matrices are those of Machado et al. 2009, severity 1."""
    protan = np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    )
    deutan = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    rgb = np.array([to_rgb(color) for color in style.COLORS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in (np.eye(3), protan, deutan):
        seen = linear @ matrix.T
        apart = np.linalg.norm(seen[:, None] - seen, axis=-1) + np.eye(len(seen))
        assert apart.min() > 0.1


def test_a_million_samples_take_seconds(rng):
    samples, data = rng.standard_normal((1_000_000, 3), dtype=np.float32), rng.standard_normal((5000, 3))
    began = time.process_time()  # not the clock on the wall: other programs may be running
    for dim in (1, 2, 3):
        figure = plotting.compare_samples(samples[:, :dim], data[:, :dim], title="1,000,000 samples")
        assert png_size(figure) < 200_000
    assert png_size(plotting.pair_plot(samples, data)) < 200_000
    assert time.process_time() - began < 12  # about 3 measured


def test_names_from_a_file_are_shown_as_they_are_and_shortened(rng):
    rows = rng.standard_normal((20, 2))
    figure = plotting.compare_samples(rows, rows, columns=["cost in $ of $x", "y" * 300], title="a $ b " * 40)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "cost in $ of $x"
    assert axes.get_ylabel() == "y" * 39 + "…"
    assert figure.get_suptitle().count("\n") == 2
    figure.savefig(io.BytesIO())  # "$" must not be read as a formula


def test_no_pyplot_no_global_state_and_any_thread(rng, monkeypatch):
    def settings():  # asking for the backend would choose one, by pyplot
        return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it fails now
    before = settings()
    rows = rng.standard_normal((100, 3))
    sizes = []

    def draw():
        for dim in (1, 2, 3):
            sizes.append(png_size(plotting.compare_samples(rows[:, :dim], rows[:, :dim])))

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert len(sizes) == 3 and min(sizes) > 5000
    assert settings() == before


@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_files_of_every_kind_stay_small(rng, tmp_path, kind):
    """Points are stored as one picture in vector files, not as 10,000 paths."""
    rows = rng.standard_normal((5000, 2))
    path = tmp_path / f"picture.{kind}"
    plotting.compare_samples(rows, rows).savefig(path, dpi=100)
    assert 5_000 < path.stat().st_size < 300_000
    assert path.read_bytes()[:4] in (b"%PDF", b"<?xm", b"\x89PNG")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_of_any_kind_are_drawn(dtype):
    rows = (torch.rand(60, 2) * 2).to(dtype)
    drawn = rows_of(plotting.compare_samples(rows, rows).axes[0].collections[0])
    assert np.array_equal(in_order(drawn), in_order(rows.double().numpy()))


# ---- pairs


def test_pair_plot_has_a_panel_for_each_pair_with_both_sets(rng):
    data, samples = rng.uniform(0, 1, (300, 3)), rng.uniform(0, 1, (200, 3))
    figure = plotting.pair_plot(samples, data, columns=["a", "b", "c"])
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == 6
    pairs = [axes for axes in panels if axes.collections]
    assert len(pairs) == 3
    colors = colors_of(pairs[0].collections[0])
    assert colors.count(style.DATA_COLOR) == 300
    assert 190 <= colors.count(style.SAMPLE_COLOR) <= 200
    assert {panel.get_xlabel() for panel in panels} == {"", "a", "b", "c"}
    assert "data: 300 rows" in texts(figure)
    drawn = rows_of(pairs[1].collections[0])  # row c, column a
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in np.concatenate([data, samples])[:, [0, 2]]}


# ---- images


def test_image_grid_holds_the_first_images_in_their_places(rng):
    images = rng.integers(0, 256, (10, 5, 4)).astype(np.uint8)
    picture = plotting.image_grid(images, rows=2).axes[0].images[0].get_array()
    assert picture.shape == (2 * 5 + 1, 5 * 4 + 4, 3)
    low, high = images.min(), images.max()
    for k in range(10):
        top, left = k // 5 * 6, k % 5 * 5
        grey = np.rint((images[k] - float(low)) / (float(high) - low) * 255)
        assert np.array_equal(picture[top : top + 5, left : left + 4, 0], grey)
    assert (picture[5] == picture[:, 4][0]).all()  # the lines


def test_image_panels_are_grids_with_one_grey_scale(rng):
    first, last = rng.uniform(-1, 1, (20, 6, 6)), np.tile([[-0.5, 0.5], [0.5, -0.5]], (3, 3))[None]
    figure = plotting.image_panels({"epoch 1": first, "epoch 2": last[:, None]}, columns=3, side=2)
    assert [axes.get_title() for axes in figure.axes] == ["epoch 1", "epoch 2"]
    left, right = (axes.images[0].get_array() for axes in figure.axes)
    assert left.shape == (2 * 6 + 1, 2 * 6 + 1, 3)
    wanted = np.rint(255 * np.clip(first[3] + 0.5, 0, 1))  # black and white are those of the last
    assert np.array_equal(left[7:, 7:, 0], wanted)
    assert set(np.unique(right[:6, :6])) == {0, 255}
    flat = plotting.image_panels({"flat": first.reshape(20, 36)}, shape=(4, 9))
    assert flat.axes[0].images[0].get_array().shape == (4 * 4 + 3, 4 * 9 + 3, 3)


def test_flat_images_and_channels_are_the_same_pictures(rng):
    images = rng.random((9, 6, 6))
    grids = [images, images.reshape(9, 36), images[:, None], torch.from_numpy(images)]
    pictures = [plotting.image_grid(grid).axes[0].images[0].get_array() for grid in grids]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    wide = plotting.image_grid(images.reshape(9, 36), shape=(4, 9)).axes[0].images[0].get_array()
    assert wide.shape == (3 * 4 + 2, 3 * 9 + 2, 3)


def test_images_beside_data_have_the_data_s_grey_scale(rng):
    data = rng.uniform(-1, 1, (100, 8, 8))
    samples = data[:70].copy()
    samples[0, 0, 0], samples[0, 0, 1], samples[0, 0, 2] = 50, -50, np.nan
    figure = plotting.image_grid(samples, data, title="digits")
    left, right = (axes.images[0].get_array() for axes in figure.axes)
    assert right[0, :3].tolist() == [[255] * 3, [0] * 3, [213, 94, 0]]
    assert np.array_equal(left[1:], right[1:])
    assert [axes.get_title() for axes in figure.axes] == ["data", "samples"]
    assert "64 of 100, black -1, white 1" in texts(figure) and "64 of 70" in texts(figure)
    assert png_size(figure) < 200_000


def test_a_png_is_what_the_figure_says(rng):
    buffer = io.BytesIO()
    plotting.compare_samples(rng.random((50, 1)), rng.random((50, 1))).savefig(buffer, dpi=100)
    with Image.open(buffer) as picture:
        assert picture.format == "PNG" and picture.size == (650, 440)
        shown = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for color in (style.SAMPLE_COLOR, "#FFFFFF"):
        assert (shown == np.rint(np.array(to_rgb(color)) * 255)).all(axis=1).sum() > 100
