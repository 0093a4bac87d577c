"""Kubernetes' own schemas for what is its own, pod specs in the operator's resource, and names and ports that fit."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from test_compose import ROOT, SIZE, mebibytes, services, trained  # noqa: F401 (fixture)

from deploy import worker_pool
from pipelines.memory import MIB, need
from schemas.config import load_config

FOLDER = ROOT / "deploy" / "k8s"
VERSION = "1.33"  # the newest whose schemas kubernetes-validate 1.34.0 carries
FILES = sorted(FOLDER.glob("*.yaml"))
RESOURCES = [each for file in FILES for each in yaml.safe_load_all(file.read_text())]
#: The operator names Flink's own container, and gives it its image and arguments.
MAIN = "flink-main-container"


def named(kind, name):
    (found,) = (each for each in RESOURCES if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def flink():
    return named("FlinkDeployment", "freshet")["spec"]


def merged(*templates):
    """Pod templates one over the other, as the operator does: containers and volumes by name."""
    spec, labels = {"containers": {}, "volumes": {}}, {}
    for template in templates:
        labels |= template.get("metadata", {}).get("labels", {})
        own = template.get("spec", {})
        for part in ("containers", "volumes"):
            for each in own.get(part, []):
                spec[part][each["name"]] = spec[part].get(each["name"], {}) | each
        spec |= {name: value for name, value in own.items() if name not in ("containers", "volumes")}
    spec["containers"].setdefault(MAIN, {"name": MAIN})["image"] = flink()["image"]
    return labels, spec | {part: list(spec[part].values()) for part in ("containers", "volumes")}


def pods():
    """By name, labels and spec of every pod that comes of the files."""
    found = {each["metadata"]["name"]: (each["spec"]["template"]["metadata"]["labels"], each["spec"]["template"]["spec"])
             for each in RESOURCES if each["kind"] in ("Deployment", "Job")}  # fmt: skip
    for manager in ("jobManager", "taskManager"):
        found[manager] = merged(flink()["podTemplate"], flink()[manager]["podTemplate"])
    return found


def container(pod, name):
    (found,) = (each for each in pods()[pod][1]["containers"] if each["name"] == name)
    return found


def environment(each):
    return {key: value for source in each.get("envFrom", []) for key, value in
            named("ConfigMap", source["configMapRef"]["name"])["data"].items()}  # fmt: skip


def words(each):
    """A container's arguments with $(NAME) replaced, as Kubernetes does."""
    values = environment(each)
    return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in each["args"]]


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_resources_are_valid(resource):
    if resource["kind"] == "FlinkDeployment":
        assert resource["apiVersion"] == "flink.apache.org/v1beta1"
    else:
        kubernetes_validate.validate(resource, VERSION, strict=True)
    assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "freshet"


@pytest.mark.parametrize("manager", ["jobManager", "taskManager"])
def test_pods_of_flink_are_valid(manager):
    labels, spec = merged(flink()["podTemplate"], flink()[manager]["podTemplate"])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "flink", "labels": labels}, "spec": spec}
    kubernetes_validate.validate(pod, VERSION, strict=True)


def test_a_mistake_in_a_pod_template_is_found():
    _, spec = merged(flink()["podTemplate"], {"spec": {"containers": [{"name": "workers", "imag": "x"}]}})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}, VERSION, True
        )


def test_settings_of_flink_are_those_of_compose(services):  # noqa: F811
    theirs = dict(line.split(": ", 1) for line in services["taskmanager"]["environment"]["FLINK_PROPERTIES"].splitlines())
    ours = flink()["flinkConfiguration"]
    assert {name: ours[name] for name in ours if name in theirs} == {name: theirs[name] for name in ours if name in theirs}
    assert set(theirs) - ours.keys() == {"jobmanager.rpc.address"} | {
        f"{part}manager.memory.process.size" for part in ("job", "task")
    }
    for part in ("job", "task"):
        assert flink()[f"{part}Manager"]["resource"]["memory"] == theirs[f"{part}manager.memory.process.size"]
    assert flink()["flinkVersion"] == "v" + "_".join(flink()["image"].split(":")[1].split(".")[:2])


def test_images_are_those_of_compose(services):  # noqa: F811
    images = {each["image"] for _, spec in pods().values() for each in spec["containers"]}
    assert images <= {each["image"] for each in services.values()}
    assert len(images) == 4


def test_containers_say_what_they_need():
    for name, (_, spec) in pods().items():
        for each in spec["containers"]:
            if each["name"] != MAIN:  # the operator's, from `resource`
                assert mebibytes(each["resources"]["requests"]["memory"]) <= mebibytes(each["resources"]["limits"]["memory"])
                assert each["resources"]["requests"]["cpu"], name
    told = need(load_config(ROOT / "schemas" / "simulator.toml"), *SIZE).total / MIB
    for bound in ("requests", "limits"):
        assert told <= mebibytes(container("taskManager", "workers")["resources"][bound]["memory"]) < 1.5 * told


def test_containers_that_stay_are_probed():
    for pod, name in (("taskManager", "workers"), ("jobserver", "jobserver"), ("serving", "serving")):
        assert {"startupProbe", "livenessProbe"} <= container(pod, name).keys()
    assert "readinessProbe" in container("serving", "serving")


def test_commands_read_their_options_and_find_each_other():
    module, *given = container("taskManager", "workers")["args"]
    assert module == "deploy.worker_pool"
    pool = worker_pool.parse_args(given)
    module, *given = words(container("train", "train"))
    assert module == "pipelines.train"
    options, config = trained(given)
    found = options.get_all_options()
    assert found["environment_config"] == f"localhost:{pool.port}"
    assert found["flink_master"] == named("FlinkDeployment", "freshet")["metadata"]["name"] + "-rest:8081"
    server = container("jobserver", "jobserver")["args"]
    assert server[server.index("--flink-master") + 1] == f"http://{found['flink_master']}"
    ports = {each["name"]: each["port"] for each in named("Service", "jobserver")["spec"]["ports"]}
    for part in ("job", "artifact"):
        assert (
            found[f"{part}_endpoint"] == f"jobserver:{ports[part]}" == f"jobserver:{server[server.index(f'--{part}-port') + 1]}"
        )
    metrics = [each["containerPort"] for each in container("taskManager", "workers")["ports"]]
    assert metrics == [config.metrics.port]
    serving = {each["name"]: each["value"] for each in container("serving", "serving")["env"]}
    assert config.model_dir == f"{serving['MODEL_BASE_PATH']}/{serving['MODEL_NAME']}"


def test_services_lead_to_pods_that_listen():
    for service in (each for each in RESOURCES if each["kind"] == "Service"):
        (spec,) = (spec for labels, spec in pods().values() if service["spec"]["selector"].items() <= labels.items())
        listening = {port["name"]: port["containerPort"] for each in spec["containers"] for port in each["ports"]}
        for port in service["spec"]["ports"]:
            assert listening[port["targetPort"]] == port["port"]


def test_policies_select_pods_that_are_there_and_open_ports_that_are_used():
    policies = [each["spec"] for each in RESOURCES if each["kind"] == "NetworkPolicy"]
    labels = {each["freshet/part"] for each, _ in pods().values()}
    chosen = {each["podSelector"].get("matchLabels", {}).get("freshet/part") for each in policies} - {None}
    assert chosen == labels - {"train"}  # which nobody calls
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in policies
    used = {8081} | {port["containerPort"] for _, spec in pods().values() for each in spec["containers"]
                     for port in each.get("ports", [])}  # fmt: skip
    opened = {port["port"] for each in policies for rule in each.get("ingress", []) for port in rule.get("ports", [])}
    assert opened <= used


def test_the_readiness_of_serving_is_the_health_of_compose(services):  # noqa: F811
    assert services["serving"]["healthcheck"]["test"] == [
        "CMD",
        *container("serving", "serving")["readinessProbe"]["exec"]["command"],
    ]


def test_monitoring_of_serving_is_that_of_compose():
    text = (ROOT / "deploy" / "serving" / "monitoring.config").read_text()
    assert named("ConfigMap", "serving")["data"]["monitoring.config"] in re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)


def test_resources_are_applied_in_an_order_that_works():
    """kubectl apply -f FOLDER takes files by name: what others name comes first."""
    assert RESOURCES[0]["kind"] == "Namespace"
    order = [Path(file).name for file in FILES]
    assert order.index("00-base.yaml") < order.index("10-flink.yaml") < order.index("30-train.yaml")
