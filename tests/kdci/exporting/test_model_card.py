from __future__ import annotations

import math
from typing import Any

import pytest
from ruamel.yaml import YAML

from kdci.exporting.footprint import Footprint, Size
from kdci.exporting.model_card import model_card
from kdci.exporting.release import Release, Terms
from tests.kdci.exporting._experiment import (
    CELL,
    COMMIT,
    TEACHER,
    Experiment,
    compensation,
    row,
)


def section(card: str, title: str) -> str:
    """Return a section's text, without its title."""
    return card.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def read_front_matter(card: str) -> Any:
    before, fence, rest = card.partition("---\n")
    assert fence and not before
    return YAML(typ="safe", pure=True).load(rest.partition("\n---\n")[0])


def test_sections_and_their_order(experiment: Experiment) -> None:
    card = model_card(experiment.release())
    titles = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    assert titles == [
        "Results",
        "Teacher",
        "Substitution pool",
        "Confounder dictionary",
        "Bias compensation",
        "Training",
        "Size and speed",
        "Data and licence",
        "Limits",
        "How to load it",
        "Provenance",
    ]
    assert f"# {CELL.name}\n" in card


class TestFrontMatter:
    def test_says_licence_tags_data_and_accuracy_as_a_share(self, experiment: Experiment) -> None:
        release = experiment.release(terms=Terms(license="apache-2.0"))
        found = read_front_matter(model_card(release))
        assert found["license"] == "apache-2.0" and found["library_name"] == "pytorch"
        assert {"data-free", "knowledge-distillation", "dfnd", "kdci"} < set(found["tags"])
        assert len(found["tags"]) == len(set(found["tags"]))
        assert found["datasets"] == ["digits"] and found["metrics"] == ["accuracy"]
        (model,) = found["model-index"]
        (result,) = model["results"]
        assert result["metrics"][0]["value"] == pytest.approx(800 / 899, abs=1e-6)

    def test_without_a_measured_accuracy_there_is_no_index(self, experiment: Experiment) -> None:
        experiment.write_evaluation(row(accuracy_backbone=None), num_images=None)
        found = read_front_matter(model_card(experiment.release()))
        assert "model-index" not in found and "metrics" not in found
        assert found["license"] == "unknown"

    def test_is_what_hugging_face_reads(self, experiment: Experiment) -> None:
        hub = pytest.importorskip("huggingface_hub")
        card = hub.ModelCard(model_card(experiment.release()))
        (result,) = card.data.eval_results
        assert (result.metric_type, result.dataset_type) == ("accuracy", "digits")
        assert result.metric_value == pytest.approx(800 / 899, abs=1e-6)
        assert result.dataset_split == "test" and card.data.pipeline_tag == "image-classification"
        assert card.text.lstrip().startswith(f"# {CELL.name}")

    @pytest.mark.parametrize("name", ["yes", "1e3", "a: b", "- x", "'\"", "ünknown\n---\nx: y"])
    def test_a_name_of_any_kind_is_read_as_it_was_given(
        self, name: str, experiment: Experiment
    ) -> None:
        release = experiment.release(terms=Terms(license=name))
        assert read_front_matter(model_card(release))["license"] == name


class TestResults:
    def test_accuracy_has_its_images_and_their_interval(self, experiment: Experiment) -> None:
        told = section(model_card(experiment.release()), "Results")
        # Wilson's interval of 800 of 899, by its formula.
        p, n, z = 800 / 899, 899, 1.959964
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        interval = f"{100 * (middle - half):.1f} to {100 * (middle + half):.1f}"
        assert (
            f"88.99 % of 899 test images of digits (95 % interval over images {interval})" in told
        )
        assert "this one student" in told
        assert "90.00 % of 5 held-out substitutes" in told

    def test_it_is_that_of_the_deployed_form(self, experiment: Experiment) -> None:
        told = section(model_card(experiment.release("compensated")), "Results")
        assert "77.86 % of 899" in told and "80.00 % of 5" in told

    def test_seeds_are_told_as_mean_and_half_width(self, experiment: Experiment) -> None:
        experiment.write_evaluation(
            row(accuracy_backbone=90.0), row(seed=2, accuracy_backbone=94.0)
        )
        told = section(model_card(experiment.release()), "Results")
        # t of 0.975 with one degree of freedom is 12.706; the mean's standard error is 2.
        assert "92.0 ± 25.4 % over the 2 students" in told

    def test_no_test_data(self, experiment: Experiment) -> None:
        experiment.write_evaluation(row(accuracy_backbone=None), num_images=None)
        told = section(model_card(experiment.release()), "Results")
        assert "Accuracy: not measured" in told and "90.00 %" in told

    def test_no_evaluation(self, experiment: Experiment) -> None:
        experiment.write_student(compensation(hidden_dim=8))
        card = model_card(experiment.release())
        assert "evaluation of this student was not at hand" in section(card, "Results")
        assert "expected calibration error" not in section(card, "Limits")


class TestWhatMadeIt:
    def test_teacher_pool_and_dictionary(self, experiment: Experiment) -> None:
        card = model_card(experiment.release())
        teacher = section(card, "Teacher")
        assert TEACHER in teacher and "98.50 %" in teacher
        assert experiment.parents["teacher"] in teacher
        pool = section(card, "Substitution pool")
        assert "100 images when distillation began, 130 at its end; 5 more" in pool
        assert "100 of its images are open-world ones (folder `wild`)" in pool
        assert "Files left out: unreadable 3." in pool
        # Half of |0.5 - 0.1| twice and |0 - 0.1| eight times.
        assert "from even 0.800 (0: even), mean confidence 0.750" in pool
        assert "0: 50.0 %, 1: 50.0 %, 2: 0.0 %" in pool
        assert "none of: 2, 3, 4, 5, 6, 7, 8, 9." in pool
        dictionary = section(card, "Confounder dictionary")
        assert "4 prototypes (5 asked for) in the space of logits, 10 values" in dictionary
        assert "`d1c7`" in dictionary

    def test_pool_of_images_that_were_made(self, experiment: Experiment) -> None:
        experiment.write_pool(num_open_world=0, skipped={}, missing_classes=[])
        experiment.write_student(compensation())
        pool = section(model_card(experiment.release()), "Substitution pool")
        assert "made from the teacher alone" in pool and "none of: none." in pool

    def test_pool_with_a_known_shift(self, experiment: Experiment) -> None:
        experiment.write_pool(base="fast", num_distinct=77)
        experiment.write_student(compensation())
        pool = section(model_card(experiment.release()), "Substitution pool")
        assert "77 images of the Fast pool, resampled and degraded on purpose" in pool

    def test_many_classes_are_told_by_their_ends(self, experiment: Experiment) -> None:
        shares = [0.0] * 30 + [i / 2415 for i in range(70)]
        experiment.write_pool(proportions=shares, missing_classes=list(range(31)))
        experiment.write_student(compensation(), dataset="cifar100", num_classes=100)
        pool = section(model_card(experiment.release()), "Substitution pool")
        assert "largest 99: 2.9 %, 98: 2.8 %" in pool and pool.count(" %") == 10
        assert "18, 19 and 11 more." in pool

    def test_relatives_that_are_gone(self, experiment: Experiment) -> None:
        experiment.parents = {role: f"{role}-content" for role in experiment.parents}
        experiment.write_student(compensation())
        card = model_card(experiment.release())
        for title, role in (
            ("Teacher", "teacher"),
            ("Substitution pool", "pool"),
            ("Confounder dictionary", "dictionary"),
        ):
            assert f"`{role}-content`" in section(card, title)
            assert "ot at hand" in section(card, title)
        provenance = section(card, "Provenance")
        assert "| teacher | `teacher-content` | not at hand |" in provenance

    def test_compensation_is_kept_dropped_or_was_never_there(self, experiment: Experiment) -> None:
        title = "Bias compensation"
        assert "Dropped here" in section(model_card(experiment.release()), title)
        assert "Kept" in section(model_card(experiment.release("compensated")), title)
        del experiment.parents["dictionary"]
        experiment.write_student(None, variant="vanilla")
        card = model_card(experiment.release())
        assert "None to keep or to drop: the plain method" in section(card, title)
        assert "this arm uses no dictionary" in section(card, "Confounder dictionary")

    def test_training(self, experiment: Experiment) -> None:
        told = section(model_card(experiment.release()), "Training")
        assert "12 steps of 8 images (96 in all), 0.5 times the steps of the recipe" in told
        assert "Trained in bf16, exported in fp32" in told

    def test_provenance(self, experiment: Experiment) -> None:
        release = experiment.release()
        told = section(model_card(release), "Provenance")
        assert f"Commit: `{COMMIT}`; params: `f00d`; seeds: " in told
        student = release.lineage.student
        assert f"| student | `{student.content}` | `{student.card['card_sha256']}` |" in told
        assert told.count("\n| ") == 7  # head, rule, and five artifacts


def test_size_and_speed(experiment: Experiment) -> None:
    told = section(model_card(experiment.release()), "Size and speed")
    assert "some processor, 2 threads, float32), after a warm-up, the two in turn." in told
    assert "| teacher | 2,000 | 8.0 kB | 4 | 9 |" in told
    assert "| student | 1,000 | 4.0 kB | 1 | 6 |" in told
    assert "| teacher / student | x 2.00 | x 2.00 | x 4.00 | x 1.50 |" in told


def test_size_and_speed_without_a_teacher(experiment: Experiment) -> None:
    alone = Footprint({"student": Size(10, 4_000_000)}, {1: {"student": 0.5}}, 1, "it")
    told = section(model_card(experiment.release(footprint=alone)), "Size and speed")
    assert "| student | 10 | 4.00 MB | 0.5 |" in told and "teacher /" not in told
    assert "1 thread, float32), after a warm-up. The teacher is not at hand" in told


def test_licences_are_asked_for_until_they_are_stated(experiment: Experiment) -> None:
    assert "Its licence: unknown: state it." in model_card(experiment.release())
    terms = Terms(license="mit", data_license="CC BY 4.0, clinic's own")
    told = section(model_card(experiment.release(terms=terms)), "Data and licence")
    assert "Its licence: CC BY 4.0, clinic's own." in told and "weights: mit." in told


def test_limits_are_told_with_what_was_measured(experiment: Experiment) -> None:
    told = section(model_card(experiment.release()), "Limits")
    assert "No calibration is claimed" in told and "calibration error 4.2 %" in told
    assert "0.031 away from the true ones" in told


def test_only_what_was_written_is_loaded(experiment: Experiment) -> None:
    release: Release = experiment.release(formats={"pt2": {}})
    told = section(model_card(release), "How to load it")
    assert "model.pt2" in told and "onnx" not in told and "mlflow" not in told


def test_export_json_says_the_same(experiment: Experiment) -> None:
    found: dict[str, Any] = experiment.release("compensated").asdict()
    assert found["name"] == CELL.name and found["deploy"] == "compensated"
    assert found["accuracy"] == 100 * 700 / 899 and found["num_test_images"] == 899
    assert found["input"] == {"dtype": "float32", "shape": ["N", 1, 16, 16], "range": [0, 1]}
    assert found["footprint"]["median_latency_ms"]["batch 32"] == {"teacher": 9.0, "student": 6.0}
    assert found["footprint"]["threads"] == 2 and found["commit"] == COMMIT
    assert set(found["artifacts"]) == {"student", "teacher", "pool", "dictionary", "evaluation"}


class TestWhatAnswersMean:
    NAMES = ("cat\nfish", *"bcdefghij")

    def custom(self, experiment: Experiment, **facts: Any) -> Release:
        experiment.write_student(None, dataset="custom", **facts)
        return experiment.release()

    def test_the_names_of_a_custom_dataset(self, experiment: Experiment) -> None:
        release = self.custom(experiment, class_names=list(self.NAMES))
        card = model_card(release)
        assert "Classes, in the order of the logits: 0 cat fish, 1 b, 2 c" in card
        assert "cat fish: 50.0 %, b: 50.0 %" in section(card, "Substitution pool")
        assert release.asdict()["class_names"] == list(self.NAMES)

    def test_numbers_where_there_are_no_names(self, experiment: Experiment) -> None:
        release = self.custom(experiment)
        assert "Classes: numbers alone" in model_card(release)
        assert release.asdict()["class_names"] is None

    def test_those_of_the_catalog(self, experiment: Experiment) -> None:
        """A student's card of the time before it had names."""
        assert experiment.release().asdict()["class_names"] == list("0123456789")

    @pytest.mark.parametrize(
        ("dataset", "told"),
        [
            ("digits", "Images have exactly 16 x 16 pixels; nothing is cut or resized."),
            ("cifar100", "Images have exactly 16 x 16 pixels; nothing is cut or resized."),
            ("custom", "The centred square as large as the image holds is resized to 16 x 16 pix"),
            ("imagenet", "The centred square of 0.875 of its shorter side is resized to 16 x 16"),
        ],
    )
    def test_how_photographs_become_images(
        self, dataset: str, told: str, experiment: Experiment
    ) -> None:
        experiment.write_student(None, dataset=dataset)
        release = experiment.release()
        assert told in model_card(release) and told in release.asdict()["preprocessing"]
