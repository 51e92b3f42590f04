"""The JobSets of gke/: valid by Kubernetes' own schemas, and in accord with the table of slices."""

import json
import re

import pytest
import yaml

from bottleneck.parallel.slices import all_slices

RUN = ["train", "--config=configs/pythia.py:410m", '--config.data.paths=/a "b": {c}, $(d) $e']
RUN += ["--workdir=gs://b/$$(HOME)$$", "$$$(NAME)", "$"]

# The fields used here of jobset.x-k8s.io/v1alpha2, as its API reference gives them.
JOBSET = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
                "annotations": {"additionalProperties": {"type": "string"}},
            },
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["replicatedJobs"],
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"maxRestarts": {"type": "integer", "minimum": 0}},
                },
                "network": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "enableDNSHostnames": {"type": "boolean"},
                        "subdomain": {"type": "string"},
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "template"],
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer", "minimum": 1},
                            "template": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["spec"],
                                "properties": {"metadata": {"type": "object"}, "spec": {}},
                            },
                        },
                    },
                },
            },
        },
    },
}


def render(machine, kind, **settings):
    output, _ = machine.run("gke.sh", "render", kind, "--", *RUN, **settings)
    return yaml.safe_load(output)


def job_of(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated, replicated["template"]["spec"]


def container_of(manifest):
    (container,) = job_of(manifest)[1]["template"]["spec"]["containers"]
    return container


def arguments_of(manifest):
    """As Kubernetes hands them to the program: $(NAME) from the environment, $$ a dollar sign."""
    pattern = re.compile(r"\$\$|\$\((\w+)\)")
    environment = {"JOB_COMPLETION_INDEX": "0", "HOME": "/root", "NAME": "mine", "d": "other"}
    return [
        pattern.sub(lambda found: environment[found[1]] if found[1] else "$", argument)
        for argument in container_of(manifest)["args"]
    ]


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
@pytest.mark.parametrize("provisioning", ["on-demand", "spot", "flex-start"])
def test_manifests_are_valid_by_kubernetes_own_schemas(machine, kind, provisioning):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    manifest = render(machine, kind, PROVISIONING=provisioning, SLICES="2", NODES="3")
    jsonschema.validate(manifest, JOBSET)
    replicated, job = job_of(manifest)
    version = kubernetes_validate.latest_version()
    for api, name, spec in (("batch/v1", "Job", job), ("v1", "Pod", job["template"]["spec"])):
        resource = {"apiVersion": api, "kind": name, "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(resource, version, strict=True)
    assert replicated["replicas"] == (2 if kind == "tpu" else 1)


@pytest.mark.parametrize("row", all_slices()[::4], ids=lambda row: f"{row.chip}:{row.topology}")
def test_a_slice_gets_the_hosts_chips_and_nodes_of_the_table(machine, row):
    manifest = render(machine, "tpu", ACCELERATOR=f"{row.chip}:{row.topology}")
    _, job = job_of(manifest)
    assert job["parallelism"] == job["completions"] == row.hosts
    limits = container_of(manifest)["resources"]["limits"]
    assert limits["google.com/tpu"] * job["parallelism"] == row.chips
    labels = job["template"]["spec"]["nodeSelector"]
    assert labels["cloud.google.com/gke-tpu-accelerator"] == row.gke_accelerator
    assert labels["cloud.google.com/gke-tpu-topology"] == row.topology


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_arguments_arrive_as_they_were_whatever_is_in_them(machine, kind):
    assert arguments_of(render(machine, kind))[: len(RUN)] == RUN


def test_gpu_processes_find_the_first_by_its_name_and_are_numbered(machine):
    manifest = render(machine, "gpu", NODES="4", NAME="my-run")
    assert container_of(manifest)["args"][-3:] == [
        "--coordinator=my-run-workers-0-0.my-run:8476",
        "--processes=4",
        "--process=$(JOB_COMPLETION_INDEX)",
    ]
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated["name"] == "workers" and manifest["metadata"]["name"] == "my-run"
    assert manifest["spec"]["network"]["enableDNSHostnames"] is True
    assert {p["containerPort"] for p in container_of(manifest)["ports"]} == {8476}


def test_a_lost_host_starts_all_anew_and_each_has_time_to_save(machine):
    for kind in ("tpu", "gpu"):
        _, job = job_of(render(machine, kind))
        pod = job["template"]["spec"]
        assert (job["backoffLimit"], job["completionMode"]) == (0, "Indexed")
        assert pod["restartPolicy"] == "Never"
        assert pod["terminationGracePeriodSeconds"] >= 120


def test_spot_pods_go_to_spot_nodes_and_others_do_not(machine):
    label = "cloud.google.com/gke-spot"
    pods = {
        how: job_of(render(machine, "tpu", PROVISIONING=how))[1]["template"]["spec"]
        for how in ("spot", "on-demand")
    }
    assert pods["spot"]["nodeSelector"][label] == "true"
    assert [t["key"] for t in pods["spot"]["tolerations"]] == [label]
    assert label not in pods["on-demand"]["nodeSelector"]


def test_apply_hands_the_manifest_to_kubectl_and_the_other_verbs_name_it(machine):
    machine.run("gke.sh", "apply", "tpu", "--", *RUN)
    (record,) = machine.records
    assert record["call"] == ["kubectl", "apply", "--filename=-"]
    assert yaml.safe_load(record["stdin"]) == render(machine, "tpu")
    for verb in ("status", "logs", "delete"):
        machine.run("gke.sh", verb)
    assert machine.calls[1:] == [
        ["kubectl", "get", "jobset/mine"],
        [
            *("kubectl", "get", "pods", "--selector=jobset.sigs.k8s.io/jobset-name=mine"),
            "--output=wide",
        ],
        ["kubectl", "logs", "--follow", "--tail=100", "job/mine-workers-0"],
        ["kubectl", "delete", "jobset/mine"],
    ]


def test_a_manifest_that_cannot_be_made_is_not_handed_on(machine):
    machine.run("gke.sh", "apply", "tpu", "--", *RUN, NAME="My_Run", code=1)
    machine.run("gke.sh", "apply", "cpu", "--", *RUN, code=2)
    machine.run("gke.sh", "apply", "tpu", "--", *RUN, ACCELERATOR="v5e:7x7", code=2)
    assert machine.calls == []


def test_flags_of_the_compiler_are_those_of_the_table(machine):
    from bottleneck.parallel.slices import flags_of

    (entry,) = container_of(render(machine, "tpu", SLICES="2"))["env"]
    flags = " ".join(f"--{flag.name}={flag.value}" for flag in flags_of("v5e", 2))
    assert entry == {"name": "LIBTPU_INIT_ARGS", "value": flags}
    assert json.dumps(entry)  # plain values
