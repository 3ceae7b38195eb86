"""What each kind of fault is held to: the table of the tests, which keeps itself true.

A row is one sentence about bad input or a machine that fails. Its tests are named here by file and
beginning of their name; a test that is renamed or removed breaks this one.
"""

from __future__ import annotations

import ast

import pytest

from tests import scripts

ROWS = {
    "1 files that are no photo": """
        faults/test_images.py::test_damaged_files_are_unreadable_and_named
        faults/test_images.py::test_every_flipped_bit_in_png_pixel_data_is_noticed
        faults/test_images_in_training.py::test_more_bad_images_than_allowed_stop_the_run
        faults/test_images_in_training.py::test_a_bad_image_is_skipped_not_replaced
        end_to_end/test_stage1.py::test_images_that_cannot_be_read_are_listed_and_counted
        end_to_end/test_evaluation.py::test_a_photo_that_cannot_be_read_is_in_no_denominator
        end_to_end/test_evaluation.py::test_a_photo_that_breaks_in_between""",
    "2 decompression bombs": """
        faults/test_images.py::test_a_bomb_is_refused_from_its_header_and_memory_stays_flat
        faults/test_odd_photos.py::test_bombs_do_not_fill_the_memory""",
    "3 kinds of photos": """
        data/test_images.py::test_sixteen_bit_grey_is_scaled_not_clipped
        data/test_images.py::test_alpha_is_composited_on_black
        faults/test_odd_photos.py::test_each_kind_is_answered_as_the_plain_photo""",
    "4 unusual sizes": """
        faults/test_images.py::test_unusual_sizes_are_resized
        faults/test_odd_photos.py::test_each_kind_is_answered_as_the_plain_photo
        faults/test_odd_photos.py::test_an_audit_lists_what_is_no_photo""",
    "5 odd entries of a tree": """
        faults/test_trees_and_annotations.py::test_odd_entries_neither_hang_nor_count
        faults/test_images.py::test_what_is_no_regular_file_is_refused_without_a_hang
        faults/test_odd_photos.py::test_an_audit_lists_what_is_no_photo
        faults/test_odd_photos.py::test_a_name_that_is_not_utf8_has_its_row
        end_to_end/test_predict.py::test_folders_are_searched_for_regular_image_files_alone""",
    "6 trees of another shape": """
        faults/test_trees_and_annotations.py::test_the_wrong_level_shows_the_tree
        faults/test_trees_and_annotations.py::test_empty_species_and_record_folders_are_counted
        faults/test_refusals.py::test_the_wrong_level_of_the_tree_is_shown
        end_to_end/test_stage2.py::test_every_species_with_labels_has_its_specialist""",
    "7 spellings of a record": """
        faults/test_trees_and_annotations.py::test_spellings_of_one_record
        faults/test_odd_labels.py::test_rows_of_one_record_that_contradict_each_other""",
    "8 annotation files that are no table": """
        faults/test_trees_and_annotations.py::test_marks_line_ends_and_quoted_commas_are_read
        faults/test_trees_and_annotations.py::test_anything_else_is_an_error_with_file_and_line
        faults/test_trees_and_annotations.py::test_a_missing_column_drops_its_head
        faults/test_refusals.py::test_annotations_that_are_no_table_are_named_with_their_line""",
    "9 records and rows that do not meet": """
        faults/test_trees_and_annotations.py::test_records_without_a_row_and_rows_without
        analysis/test_audit.py::test_every_fault_of_the_tree_is_listed_once""",
    "10 a head without a known label": """
        faults/test_trees_and_annotations.py::test_a_head_without_a_known_label_has_no_class
        end_to_end/test_stage2.py::test_a_head_without_a_known_label_is_said_to_be_left_out""",
    "11 a batch without a known label": """
        training/test_losses.py::test_without_anything_to_learn_the_loss_is_0
        training/test_epoch.py::test_a_batch_without_a_known_label_trains_on_nothing
        faults/test_images_in_training.py::test_batches_without_a_known_label
        faults/test_images_in_training.py::test_without_a_known_label_in_the_validation_part""",
    "12 small classes": """
        faults/test_trees_and_annotations.py::test_small_classes_are_tested_from_three_records""",
    "13 an edited split, changed data": """
        faults/test_trees_and_annotations.py::test_an_edited_split_and_changed_data
        faults/test_refusals.py::test_an_edited_split_and_changed_data_are_refused""",
    "14 one photo in two splits": """
        analysis/test_audit.py::test_only_pairs_of_different_records_are_duplicates
        faults/test_odd_photos.py::test_an_audit_lists_what_is_no_photo_and_both_paths""",
    "15 labels and paths that are code": """
        faults/test_trees_and_annotations.py::test_odd_labels_keep_their_spelling
        faults/test_odd_labels.py::test_the_labels_come_back_through_pandas
        faults/test_odd_labels.py::test_pages_show_the_labels_and_run_nothing
        end_to_end/test_predict.py::test_names_that_are_formulas_or_no_text_keep_their_rows""",
    "16 NaN in training": """
        faults/test_runs.py::test_losses_that_stay_nan_stop_the_run_and_best_stays_whole
        faults/test_runs.py::test_single_steps_that_are_not_finite_are_skipped
        training/test_epoch.py::test_an_infinite_gradient_is_noticed_too""",
    "17 memory of the device": """
        training/test_step.py::test_what_does_not_fit_into_memory_goes_through_in_parts
        faults/test_machine.py::test_a_training_batch_that_does_not_fit_goes_through_in_parts
        faults/test_machine.py::test_passes_that_measure_halve_the_batch_and_find_the_same
        faults/test_machine.py::test_an_evaluation_halves_the_batch_and_writes_the_same
        faults/test_machine.py::test_a_device_that_takes_no_two_photos""",
    "18 loading processes": """
        data/test_ahead.py::test_a_worker_that_dies_is_replaced_by_fewer
        data/test_ahead.py::test_too_small_a_shared_memory_is_said
        faults/test_machine.py::test_a_training_survives_a_loading_process_that_dies
        faults/test_machine.py::test_an_evaluation_survives_loading_processes_that_all_die""",
    "19 signals": """
        end_to_end/test_resume.py::test_stage_1_stopped_and_killed_six_times
        end_to_end/test_resume.py::test_a_second_signal_leaves_at_once
        faults/test_signals.py::test_passes_that_measure_are_left_too
        faults/test_signals.py::test_processes_leave_a_pass_together
        faults/test_signals.py::test_a_signal_to_all_processes_of_a_terminal
        faults/test_signals.py::test_a_stopped_evaluation_goes_on""",
    "20 kills at any moment": """
        end_to_end/test_resume.py::test_stage_1_stopped_and_killed_six_times
        end_to_end/test_resume.py::test_all_specialists_go_on_after_a_kill_in_the_second
        end_to_end/test_pack.py::test_stage_1_learns_the_same
        faults/test_found_by_torture.py::test_a_kill_while_the_split_is_made
        faults/test_runs.py::test_a_run_whose_process_was_killed_is_free_at_once""",
    "21 resume": """
        end_to_end/test_resume.py::test_stage_1_stopped_and_killed_six_times
        end_to_end/test_resume.py::test_stage_2_stopped_and_killed
        end_to_end/test_processes.py::test_two_processes_stopped_and_killed""",
    "22 evaluations that are killed": """
        end_to_end/test_evaluation.py::test_kills_at_any_row_change_no_byte
        end_to_end/test_predict.py::test_a_killed_table_goes_on_and_is_the_same""",
    "23 a full disk": """
        faults/test_checkpoints.py::test_full_disk_leaves_the_old_checkpoint
        faults/test_machine.py::test_a_disk_that_fills_while_saving_leaves_whole_files
        faults/test_machine.py::test_a_disk_that_fills_while_rows_are_written""",
    "24 rivals, finished runs": """
        faults/test_runs.py::test_a_second_process_is_refused_and_told_who_holds_the_run
        faults/test_refusals.py::test_a_second_process_on_a_table_or_a_pack
        faults/test_runs.py::test_a_finished_run_is_not_touched_without_force
        end_to_end/test_evaluation.py::test_a_finished_evaluation_is_not_overwritten
        end_to_end/test_stage2.py::test_finished_specialists_are_left_alone
        export/test_bundle.py::test_a_finished_bundle_is_replaced_only_by_force""",
    "25 command lines and presets": """
        faults/test_settings.py::test_bad_setting_exits_2
        faults/test_command_lines.py::test_a_misspelt_flag_is_named_with_the_nearest
        faults/test_command_lines.py::test_a_preset_is_named_with_its_line
        faults/test_command_lines.py::test_a_value_out_of_range_is_named_with_its_flag""",
    "26 damaged and hostile checkpoints": """
        faults/test_checkpoints.py::test_truncated
        faults/test_checkpoints.py::test_a_flipped_bit_in_a_weight_is_named
        faults/test_checkpoints.py::test_wrong_content
        faults/test_checkpoints.py::test_planted_code_stays_asleep
        faults/test_found_by_torture.py::test_a_checkpoint_of_a_few_bytes
        faults/test_refusals.py::test_a_damaged_checkpoint_ends_every_way_to_ask
        faults/test_refusals.py::test_planted_code_is_not_run_by_the_script
        faults/test_refusals.py::test_a_damaged_last_checkpoint_is_named_and_left""",
    "27 no specialist": """
        inference/test_inference_engine.py::test_no_specialist
        end_to_end/test_evaluation.py::test_a_species_without_a_specialist_is_counted""",
    "28 NaN in answers": """
        inference/test_inference_engine.py::test_answers_that_are_not_finite_name_no_class
        faults/test_refusals.py::test_answers_that_are_not_finite_are_rows_without_a_class""",
    "29 topk": """
        inference/test_inference_engine.py::test_topk_is_cut_to_the_classes
        inference/test_inference_engine.py::test_topk_below_1_is_refused
        faults/test_serving.py::test_a_fault_has_its_own_answer""",
    "30 names that are paths": """
        faults/test_refusals.py::test_a_class_that_is_a_path_leads_nowhere
        faults/test_refusals.py::test_a_run_name_that_leaves_the_runs_is_refused
        inference/test_inference_engine.py::test_species_that_lead_elsewhere_are_refused
        faults/test_serving.py::test_a_fault_has_its_own_answer""",
    "31 packages, GPU, network": """
        faults/test_machine.py::test_a_torchvision_that_was_built_for_another_torch
        faults/test_machine.py::test_a_torch_below_the_floor_is_one_line
        faults/test_machine.py::test_a_gpu_that_is_not_there_is_refused_in_one_line
        faults/test_machine.py::test_without_a_network_auto_goes_on_and_says_so
        faults/test_machine.py::test_without_a_network_require_stops_in_one_line""",
    "32 what clients do": """
        faults/test_serving.py::test_a_fault_has_its_own_answer
        faults/test_serving.py::test_a_thousand_at_once_beyond_the_queue
        faults/test_serving.py::test_clients_that_go_leave_their_places
        faults/test_serving.py::test_slow_clients_keep_nobody_from_being_answered""",
    "33 exports": """
        faults/test_exported.py::test_every_file_of_a_bundle_is_checked
        inference/test_onnx_models.py::test_a_missing_file_or_card_is_named
        inference/test_onnx_models.py::test_other_weights_in_a_second_file_are_refused""",
}


def names_in(name: str) -> list[str]:
    tree = ast.parse((scripts.REPOSITORY / "tests" / name).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_every_row_is_there():
    assert [int(row.split()[0]) for row in ROWS] == list(range(1, 34))


@pytest.mark.parametrize("row", ROWS)
def test_the_tests_of_a_row_are_there(row):
    named = ROWS[row].split()
    assert named
    for test in named:
        name, _, begin = test.partition("::")
        assert [found for found in names_in(name) if found.startswith(begin)], test
