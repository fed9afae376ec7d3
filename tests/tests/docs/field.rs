//! Cases that others found in the field, each with the tests that would fail if it were there again.

use super::tests_of_the_workspace;

const CASES: &[(&str, &[&str])] = &[
    (
        "1. What is at hand is not used, because something that is not needed for it comes first",
        &[
            "a_host_with_good_files_starts_with_everything_else_away",
            "a_pod_with_good_files_starts_with_everything_else_away",
            "only_what_is_missing_is_requested",
            "only_the_role_that_has_expired_is_requested",
            "a_control_plane_comes_back_in_whatever_order_it_is_started",
            "a_node_that_lost_its_power_brings_the_control_plane_back",
        ],
    ),
    (
        "2. One recognised call switches off doubt about the rest",
        &[
            "each_command_line_from_the_field_becomes_what_is_right_for_it",
            "no_sibling_of_a_known_command_line_gives_etcd_an_option_twice",
            "no_injected_command_line_gives_etcd_an_option_twice_or_takes_one_away",
            "no_golden_shape_that_is_injected_into_gives_an_option_twice",
            "undetermined_command_lines_are_refused_with_a_way_out_that_works",
        ],
    ),
    (
        "3. The pod is not held against the contract's own names",
        &[
            "names_that_no_certificate_holds_are_said",
            "names_that_no_certificate_holds",
            "the_name_of_another_pod_or_subdomain_is_said",
            "a_client_is_told_that_no_certificate_holds_a_name_without_its_namespace",
        ],
    ),
    (
        "4. Unknown is shown as fine",
        &[
            "a_listener_that_is_not_known_is_not_guessed",
            "bundles_are_taken_or_refused",
            "a_member_whose_port_asks_for_no_certificate_is_unknown",
            "unknown_is_named_and_never_trust",
            "undetermined_urls_are_not_taken_for_none",
        ],
    ),
    (
        "5. Warnings stop at the first look",
        &[
            "urls_without_tls_are_said",
            "probes_and_scripts_without_a_client_certificate_are_reported",
            "the_hosts_network_shares_the_port",
            "programs_that_drop_groups_are_said",
            "a_static_pods_old_certificates_are_said",
            "pods_injected_without_a_warning_come_up",
        ],
    ),
    (
        "6. Nobody reads a warning",
        &[
            "kubectl_shows_the_warnings_of_a_workload",
            "a_pod_shows_once_what_admission_warned_of",
            "an_injected_pod_is_marked",
        ],
    ),
    (
        "7. One fixed shape for all clusters",
        &[
            "an_injected_pod_meets_the_rules_of_its_cluster",
            "the_operators_resources_meet_the_ratio_of_a_limit_range",
            "resources_and_log_level_are_the_pods_else_the_flags_else_built_in",
            "the_user_is_left_to_the_cluster_unless_etcds_is_declared",
            "pull_secrets_are_added_once",
            "the_manifests_ask_nothing_of_a_cluster_that_it_may_not_have",
            "a_cluster_that_assigns_users_takes_our_pods",
        ],
    ),
    (
        "8. An image is known for one program and assumed for the other",
        &[
            "etcdctls_environment_is_not_doubled_and_the_annotation_options_is_for_it_too",
            "no_injected_command_line_gives_etcdctl_an_option_twice_or_takes_one_away",
        ],
    ),
    (
        "9. Stricter than kubectl where nothing is to be changed",
        &[
            "a_document_without_a_pod_passes_byte_for_byte",
            "documents_without_a_pod_stay_byte_for_byte",
            "read_as_kubectl_reads",
            "pod_templates_of_other_kinds_are_said_and_injected_into_where_they_are_named",
        ],
    ),
    ("10. Identity is preferred to what was asked for", &["another_image_and_other_options_inject_anew_and_say_so"]),
    (
        "11. What others do to our containers",
        &[
            "additions_of_the_api_server_and_other_webhooks_do_not_matter",
            "names_of_ours_hide_nothing_else",
            "a_mesh_is_warned_of",
            "a_mesh_lets_the_init_container_through_where_it_runs_as_its_proxys_user",
        ],
    ),
    (
        "Nothing says how to get the images",
        &["a_release_names_the_registry_of_its_images", "the_commands_for_clusters_do_what_the_page_says"],
    ),
    ("kustomize prints a deprecation", &["kustomize_takes_every_component_and_example_without_a_word"]),
    ("Events of a rollover that goes well are warnings", &["a_rollover_survives_a_killed_signer_in_each_phase"]),
    ("make test counts skipped tests as passed", &["the_summary_counts_skipped_tests_apart"]),
    ("sign logs a 403 as a warning at its first start", &["two_signers_make_one_ca_and_a_killed_leader_is_succeeded"]),
    ("The trust ConfigMaps outlive the uninstall", &["an_uninstall_leaves_what_the_page_says_and_nothing_else"]),
    ("A replica that never led shows 0", &["two_signers_make_one_ca_and_a_killed_leader_is_succeeded"]),
    (
        "kubectl create of a kubectl built with another Go fails against standalone",
        &["kubectl_of_each_go_finds_that_fields_are_validated"],
    ),
];

#[test]
fn every_case_from_the_field_has_tests_that_exist() {
    let known = tests_of_the_workspace();
    for (case, names) in CASES {
        assert!(!names.is_empty(), "{case}");
        for name in *names {
            assert!(known.contains(*name), "{case}: {name} is no test");
        }
    }
    let numbers: Vec<_> = CASES.iter().filter_map(|(case, _)| case.split_once(". ")?.0.parse::<usize>().ok()).collect();
    assert_eq!(numbers, (1..=11).collect::<Vec<_>>());
}
