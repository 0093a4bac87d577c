"""Its schema, the names and ports of the commands, and a health check that tells a served model from none."""

import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
import yaml

from deploy import up, worker_pool
from deploy.flink_config import FlinkOptions, cluster_config
from pipelines import replay
from pipelines.command_line import pipeline_options
from pipelines.memory import MIB, need
from pipelines.options import TrainConfig, TrainOptions
from schemas.config import load_config
from schemas.process import CommandParser
from serving.server import parse_args

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILE = DEPLOY / "compose.yaml"
#: Rows and impressions a second that the limits of workers are for, of simulator.toml.
SIZE = (1_000_000, 1000.0)


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load(FILE.read_text())["services"]


@pytest.fixture(scope="module")
def service(services):
    return services["serving"]


def trained(words):
    """Configuration of a command line of pipelines.train, read as that does, with the image's folders being ours."""
    words = [str(word).replace("/app/", f"{ROOT}/") for word in words]
    parser = CommandParser(prog="python -m pipelines.train")
    TrainOptions._add_argparse_args(parser)
    options = pipeline_options(parser, words)
    return options, TrainConfig.from_options(options)


def mebibytes(size):
    number, unit = re.fullmatch(r"([\d.]+)([a-zA-Z]+)", str(size)).groups()
    return float(number) * {"m": 1, "mi": 1, "g": 1024, "gi": 1024}[unit.lower()]


def properties(text):
    return dict(line.split(": ", 1) for line in text.splitlines())


def test_it_is_valid_by_composes_own_schema():
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_mounts_waits_for_and_joins_is_there(services):
    named = set(yaml.safe_load(FILE.read_text())["volumes"])
    for name, each in services.items():
        for volume in each.get("volumes", []):
            source = re.sub(r"\$\{\w+:-(.*)\}", r"\1", volume.rpartition(":/")[0])
            assert source in named or (DEPLOY / source).exists(), (name, volume)
        assert set(each.get("depends_on", [])) <= services.keys(), name
    assert services["workers"]["network_mode"] == "service:taskmanager"


def test_all_ports_are_loopbacks_and_those_of_the_commands(services):
    published = {port for each in services.values() for port in each.get("ports", [])}
    assert all(port.startswith("127.0.0.1:") for port in published)
    ours = up.parse_args([])
    assert {f"127.0.0.1:{port}:{port}" for port in (ours.kafka_port, ours.rest_port, ours.serving_port)} <= published


def test_containers_have_limits_of_memory(services):
    assert {name for name, each in services.items() if "mem_limit" not in each} == {"owner"}
    # Flink divides what it is told; the container must have it.
    flink = properties(services["jobmanager"]["environment"]["FLINK_PROPERTIES"])
    assert mebibytes(services["jobmanager"]["mem_limit"]) >= mebibytes(flink["jobmanager.memory.process.size"])
    assert mebibytes(services["taskmanager"]["mem_limit"]) >= mebibytes(flink["taskmanager.memory.process.size"])
    assert mebibytes(services["kafka"]["mem_limit"]) >= 2 * mebibytes(services["kafka"]["environment"]["KAFKA_HEAP_OPTS"][4:])


def test_the_workers_have_the_memory_that_the_formula_asks_for(services):
    told = need(load_config(ROOT / "schemas" / "simulator.toml"), *SIZE).total / MIB
    assert told <= mebibytes(services["workers"]["mem_limit"]) < 1.5 * told


def test_flink_runs_with_the_settings_that_were_tried(services):
    ours = cluster_config(FlinkOptions(), "host", 0, 0, Path("/home"))
    theirs = properties(services["taskmanager"]["environment"]["FLINK_PROPERTIES"])
    same = ("taskmanager.numberOfTaskSlots", "taskmanager.memory.managed.fraction", "heartbeat.interval")
    for name in (*same, "cluster.registration.error-delay", *(f"{part}.memory.process.size" for part in ("jobmanager",))):
        assert theirs[name] == ours[name], name
    assert set(theirs) - ours.keys() == {name for name in theirs if name.startswith("metrics.")}
    assert theirs["jobmanager.rpc.address"] in services


def test_prometheus_looks_where_metrics_are(services):
    flink = properties(services["taskmanager"]["environment"]["FLINK_PROPERTIES"])
    _, config = trained(services["train"]["command"][1:])
    jobs = {each["job_name"]: each for each in yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]}
    assert config.metrics.host == "0.0.0.0"
    # The workers are in the task manager's network.
    assert jobs["trainer"]["static_configs"] == [{"targets": [f"taskmanager:{config.metrics.port}"]}]
    reporter = flink["metrics.reporter.prom.port"]
    assert jobs["flink"]["static_configs"] == [{"targets": [f"jobmanager:{reporter}", f"taskmanager:{reporter}"]}]
    assert jobs["serving"]["metrics_path"] in (DEPLOY / "serving" / "monitoring.config").read_text()
    assert (
        yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]["url"]
        == "http://prometheus:9090"
    )


def test_the_commands_read_their_options(services):
    module, *words = services["workers"]["command"]
    assert module == "deploy.worker_pool"
    pool = worker_pool.parse_args(words)
    module, *words = services["train"]["command"]
    assert module == "pipelines.train"
    options, config = trained(words)
    assert config.follow
    assert not config.local
    given = options.get_all_options()
    assert given["environment_config"] == f"localhost:{pool.port}"
    server = services["jobserver"]["command"]
    at = {name: server[server.index(f"--{name}") + 1] for name in ("job-port", "artifact-port", "flink-master")}
    assert given["job_endpoint"] == f"jobserver:{at['job-port']}"
    assert given["artifact_endpoint"] == f"jobserver:{at['artifact-port']}"
    assert at["flink-master"] == f"http://{given['flink_master']}" == "http://jobmanager:8081"
    module, *words = services["world"]["command"]
    assert module == "pipelines.replay"
    world = replay._parser().parse_args(words)
    listeners = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert world.kafka == config.logs.servers
    assert f"INSIDE://{world.kafka}," in listeners
    assert config.features.fingerprint == load_config(ROOT / "schemas" / f"{world.dataset}.toml").fingerprint
    for folder in (config.state_dir, config.model_dir, str(world.out)):
        assert folder.startswith("/shared/")


def test_images_are_of_the_versions_that_go_together(services):
    images = {each["image"] for each in services.values()}
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", image) for image in images), images
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    flink = re.search(r"apache-flink-libraries==(\S+)", (ROOT / "requirements-flink.txt").read_text())[1]
    beam = re.search(r"<beam.version>(.*)</", (DEPLOY / "flink" / "pom.xml").read_text())[1]
    kafka = re.search(r"<kafka.version>(.*)</", (DEPLOY / "kafka" / "pom.xml").read_text())[1]
    minor = flink.rpartition(".")[0]
    wanted = {f"flink:{flink}-scala_2.12-java17", f"apache/beam_flink{minor}_job_server:{beam}", f"apache/kafka:{kafka}"}
    assert wanted <= images
    assert f"FROM apache/beam_python3.11_sdk:{pins['apache-beam']}\n" in (DEPLOY / "Dockerfile").read_text()
    assert service_version(images, "tensorflow/serving") == "2.20.0"  # the newest release there is


def service_version(images, name):
    (version,) = (image.rpartition(":")[2] for image in images if image.startswith(f"{name}:"))
    return version


@pytest.mark.parametrize("module", ["deploy.worker_pool", "pipelines.train", "pipelines.replay"])
def test_the_image_has_all_that_its_commands_import(tmp_path, module):
    """Each runs where nothing is but what the image copies."""
    copied = re.findall(r"^COPY (\w+) (\w+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source for source, _ in copied} | {"requirements.txt"} == let_in
    for source, target in copied:
        shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout


def test_it_serves_what_the_clients_ask_for(service):
    ours = parse_args(["--model_dir", "models"])
    name = service["environment"]["MODEL_NAME"]
    assert name == ours.model_name
    assert f"${{FRESHET_MODELS:-models}}:/models/{name}:ro" in service["volumes"]
    assert f"127.0.0.1:{ours.port}:8500" in service["ports"]


def test_the_pools_health_check_tells_whether_it_answers(services):
    kind, _, *rest = services["workers"]["healthcheck"]["test"]
    assert kind == "CMD"

    def status(port):
        code = rest[-1].replace(":50000", f":{port}")
        return subprocess.run([sys.executable, *rest[:-1], code], cwd=ROOT, check=False, timeout=60).returncode

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert status(port) == 0
    server.stop(None).wait()
    assert status(port) == 1


def health(service, port):
    """Exit status of the health check against a port of this machine."""
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    # Compose would fill in what stands behind a dollar sign.
    assert not any("$" in part for part in command)
    assert "/8501 " in command[-1]
    command[-1] = command[-1].replace("/8501 ", f"/{port} ")
    return subprocess.run(command, timeout=20, check=False, capture_output=True).returncode


@pytest.mark.parametrize(
    ("state", "error", "healthy"),
    [("AVAILABLE", "OK", True), ("LOADING", "OK", False), ("END", "UNAVAILABLE", False), (None, "", False)],
)
def test_it_is_healthy_once_a_version_is_served(service, state, error, healthy):
    version = {"version": "3", "state": state, "status": {"error_code": error, "error_message": ""}}

    class Status(BaseHTTPRequestHandler):
        """TensorFlow Serving's answer to who asks for the state of its model."""

        def do_GET(self):
            found = self.path == f"/v1/models/{service['environment']['MODEL_NAME']}" and state is not None
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"model_version_status": [version]} if found else {}).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Status) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert (health(service, server.server_port) == 0) is healthy
        finally:
            server.shutdown()
            thread.join()


def test_it_is_not_healthy_where_nothing_listens(service):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    assert health(service, port) != 0
