from __future__ import annotations

import shutil
from dataclasses import replace

from kdci.exporting.lineage import Lineage, lineage_of
from kdci.store.artifacts import open_artifact
from tests.kdci.exporting._experiment import CELL, TEACHER, Experiment, compensation, row


def lineage(experiment: Experiment) -> Lineage:
    return lineage_of(open_artifact(experiment.student, kind="student"))


def test_finds_all_that_the_student_was_made_from(experiment: Experiment) -> None:
    found = lineage(experiment)
    assert found.cell == CELL
    assert found.teacher is not None and found.teacher.content == experiment.parents["teacher"]
    contents = {role: card["content"] for role, card in found.cards.items()}
    assert contents.keys() == {"student", "evaluation", *experiment.parents}
    assert experiment.parents.items() < contents.items()
    assert found.num_images == 899
    assert found.row is not None and found.row["accuracy_backbone"] == 100 * 800 / 899


def test_what_was_made_anew_since_is_another_one(experiment: Experiment) -> None:
    parents = dict(experiment.parents)
    experiment.write_pool(confidence=0.5)
    found = lineage(experiment)
    assert "pool" not in found.cards and found.parent("pool") == parents["pool"]
    assert found.teacher is not None


def test_scores_of_an_earlier_student_are_not_its_own(experiment: Experiment) -> None:
    experiment.write_student(compensation(hidden_dim=32))
    assert lineage(experiment).row is None


def test_scores_hold_the_students_of_the_arm(experiment: Experiment) -> None:
    others = [row(seed=2, accuracy_backbone=50.0), row(variant="vanilla")]
    experiment.write_evaluation(row(), *others)
    found = lineage(experiment)
    assert [each["seed"] for each in found.rows or ()] == [1, 2]
    assert found.row == row()


def test_without_test_data_there_is_no_number_of_images(experiment: Experiment) -> None:
    experiment.write_evaluation(num_images=None)
    found = lineage(experiment)
    assert found.row is not None and found.num_images is None


def test_dictionary_of_another_model_is_found_by_its_content(experiment: Experiment) -> None:
    shutil.rmtree(experiment.layout.dictionary(TEACHER, CELL.method, 0))
    place = experiment.layout.other.dictionary("wrn-10-1", CELL.method, 0)
    experiment.write_dictionary(place)
    found = lineage(experiment)
    assert found.cards["dictionary"]["content"] == experiment.parents["dictionary"]


def test_student_that_was_taken_elsewhere_is_alone(experiment: Experiment) -> None:
    elsewhere = experiment.root.parent / "taken"
    shutil.copytree(experiment.student, elsewhere)
    found = lineage_of(open_artifact(elsewhere, kind="student"))
    assert (found.teacher, found.rows, [*found.cards]) == (None, None, ["student"])
    assert found.cell == CELL and found.parent("teacher") == experiment.parents["teacher"]


def test_student_at_the_place_of_another_cell_is_alone(experiment: Experiment) -> None:
    place = experiment.layout.student(replace(CELL, seed=7))
    shutil.copytree(experiment.student, place)
    assert lineage_of(open_artifact(place, kind="student")).teacher is None
