"""pytest plugin: the marker ``check``, for the slice of the suite that ``make check`` runs between two edits.

What is in it stands here and nowhere else: by room, files or tests or single cases. Every room has its own, and
under ``alignment_tests`` stand one whole comparison of layers and one of a training step. With kernels compiled, all of
it takes less than three minutes on two cores: what is added here is paid for by every edit.
"""

from __future__ import annotations

import pytest

CHECKED = {
    "alignment_tests": (
        "suites/model/test_backbone.py::test_backbone_is_aligned[n-eval-train_form-batch1-128x160]",
        "suites/project/test_check.py::test_every_room_is_checked",
        "suites/project/test_makefile.py",
        "suites/project/test_rooms.py::test_every_room_was_read",
        "suites/project/test_rooms.py::test_rooms_are_kept",
        "suites/training/test_training_faults.py::test_without_a_fault_the_same_step_is_aligned",
    ),
    "alignment_tests.bench": ("suites/project/test_bench_rules.py",),
    "alignment_tests.commands": (
        "suites/commands/test_alignment_command.py::test_inputs_are_drawn_as_they_are_named",
        "suites/commands/test_alignment_command.py::test_a_target_has_names_and_literals",
    ),
    "alignment_tests.comparison": (
        "suites/commands/test_compare_runs.py::test_clean_runs_are_aligned",
        "suites/commands/test_compare_runs.py::test_planted_reason_is_found",
    ),
    "alignment_tests.conformity": (
        "suites/project/test_conformity.py::test_a_failed_model_and_its_figures_are_reported",
        "suites/project/test_conformity.py::test_the_document_is_what_the_json_makes",
        "suites/project/test_conformity.py::test_the_worst_case_names_the_row",
        "suites/project/test_operators.py::test_arrays_are_judged",
        "suites/project/test_operators.py::test_every_name_of_jittor_is_in_the_table_or_listed",
        "suites/project/test_zoo.py::test_at_least_twenty_architectures_are_run",
        "suites/project/test_zoo.py::test_cases_of_a_family_are_one",
    ),
    "alignment_tests.gpu": (
        "suites/project/test_gpu_run.py::test_all_that_passes_is_zero",
        "suites/project/test_gpu_run.py::test_bad_stage_is_reported_and_the_next_one_runs",
        "suites/project/test_gpu_run.py::test_file_of_a_package",
        "suites/project/test_gpu_run.py::test_stage_comes_with_what_it_needs",
    ),
    "alignment_tests.harness": (
        "suites/harness/test_align_layers.py::test_a_planted_fault_is_named[wrong_eps]",
        "suites/harness/test_align_layers.py::test_the_clean_pair_is_aligned",
        "suites/harness/test_layout.py",
        "suites/harness/test_localise.py",
        "suites/harness/test_port_map.py",
        "suites/harness/test_report.py::test_every_rendering_calls_a_good_report_aligned",
        "suites/harness/test_report.py::test_page_keeps_its_structure",
    ),
    "alignment_tests.meta_tests": (
        "meta_tests/test_sabotage.py::test_a_sample_of_faults_is_found_and_named_and_leaves_nothing_behind[measuring]",
        "meta_tests/test_sabotage.py::test_every_fault_has_an_experiment_and_every_experiment_a_fault",
        "meta_tests/test_sabotage.py::test_every_fault_is_on_record_as_it_is_now",
        "meta_tests/test_sabotage.py::test_the_page_is_that_of_the_recorded_runs",
    ),
    "converters": (
        "suites/model/test_converters.py::test_a_file_returns_the_bits_that_were_written",
        "suites/model/test_converters.py::test_a_misfit_is_refused_before_anything_is_written",
        "suites/model/test_converters.py::test_a_model_returns_the_bits_that_were_loaded",
    ),
    "fixtures": ("suites/project/test_config.py", "suites/data/test_data_reading.py"),
    "jt_impl": (
        "suites/project/test_cuda_choice.py",
        "suites/project/test_cuda_kernels.py",
        "suites/model/test_kernels.py::test_no_kernel_of_the_port_is_written_by_python",
        "suites/model/test_kernels.py::test_what_is_finite",
        "suites/model/test_layers.py::test_forward_in_float32",
    ),
    "torch_ref": (
        "suites/model/test_layers.py::test_forward_in_float64",
        "suites/training/test_optimizer.py::test_outputs_that_are_not_numbers_stop_training",
    ),
}


def is_of(nodeid: str, name: str) -> bool:
    """Whether the test is the one of that name, or a case of it, or stands in the file of that name."""
    test = nodeid.removeprefix("alignment_tests/")
    return test == name or test.startswith((f"{name}::", f"{name}["))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "check: in the slice that `make check` runs (alignment_tests/suites/check.py)")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [name for chosen in CHECKED.values() for name in chosen]
    for item in items:
        if any(is_of(item.nodeid, name) for name in names):
            item.add_marker(pytest.mark.check)
