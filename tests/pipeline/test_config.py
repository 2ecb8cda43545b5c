"""pipeline.yaml: every mistake is refused with its path and what would be right."""

from pathlib import Path

import msgspec
import pytest
import yaml

from pipeline.config import Config, ConfigError, load_config

ROOT = Path(__file__).parents[2]


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def paths(tree: dict[str, object], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in tree.items():
        here = f"{prefix}{key}"
        found |= paths(value, f"{here}.") if isinstance(value, dict) and value else {here}
    return found


def test_the_shipped_file_equals_the_defaults_and_lists_every_key() -> None:
    shipped = ROOT / "pipeline.yaml"
    assert load_config(shipped) == load_config(None) == Config()
    assert paths(yaml.safe_load(shipped.read_text())) == paths(msgspec.to_builtins(Config())) - {"model.reason"}


def test_what_the_program_fills_in_is_no_key() -> None:
    assert Config().model.reason == ""
    assert "model.reason: no such key" in refused("model.reason=because")


def test_every_line_of_the_shipped_file_explains_itself_or_is_like_one_that_does() -> None:
    lines = [line for line in (ROOT / "pipeline.yaml").read_text().splitlines() if ":" in line and line[:1] == " "]
    bare = [line.split("#")[0].strip() for line in lines if "#" not in line]
    explained = {line.split(":")[0].strip() for line in lines if "#" in line}
    unexplained = {line.split(":")[0] for line in bare} - explained - {"player", "dispatcher", "bind", "api_keys"}
    assert not unexplained


def test_the_resolved_configuration_survives_json() -> None:
    config = load_config(None, ["stages.t3.cpus=[0, 1]", "model.options={depth: 3, fast: true}"])
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


def test_empty_file_and_empty_sections_are_all_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == Config()
    assert load_config(written(tmp_path, "flow:\nstages:\n  t3:\n")) == Config()


def test_a_section_that_says_one_thing_keeps_the_other_defaults_of_its_place() -> None:
    config = load_config(None, ["stages.t3.device=cpu", "stages.s3gen.device=cpu"])
    assert (config.stages.t3.max_batch, config.stages.s3gen.max_batch) == (64, 16)
    assert "(default 64)" in refused("stages.t3.max_batch=0")


def test_an_unknown_key_is_named_with_its_neighbours_and_the_nearest() -> None:
    message = refused("stages.t3.devise=cpu")
    assert "stages.t3.devise: no such key" in message
    assert "did you mean 'device'?" in message
    assert "Valid in stages.t3: device, workers, max_batch, cpus" in message


def test_an_unknown_section_lists_the_sections() -> None:
    message = refused("modle.engine=espeak")
    assert "did you mean 'model'?" in message
    assert "Valid sections: model, voices, stages" in message


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "flow: {ring: 3, chunk_tokens: many}\nplayer: {block: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 3 things are wrong")
    assert "flow.ring: no such key" in message
    assert "flow.chunk_tokens: 'many' is not allowed; allowed: a whole number from 1 to 1000 (default 50)" in message
    assert "player.block: 1 is not allowed; allowed: a whole number from 32 to 8192 (default 512)" in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("player.pace=fast", "allowed: one of free, realtime"),
        ("stages.s3gen.workers=0", "a whole number from 1 to 16 (default 1)"),
        ("stages.s3gen.workers=true", "a whole number from 1 to 16"),
        ("stages.t3.cpus=[0, -1]", "stages.t3.cpus[1]"),
        ("stages.t3.cpus=2", "a list, each a whole number of at least 0"),
        ("text.idle_s=.inf", "not a finite number"),
        ("text.idle_s=.nan", "text.idle_s: nan"),
        ("text.idle_s=0", "a number above 0"),
        ("supervise.standby=maybe", "true or false"),
        ("model.options={a: [1]}", "model.options"),
        ("model.options={a: .inf}", "not a finite number"),
        ("flow=3", "flow: 3 stands where a section is expected"),
        ("player.device={a: 1}", "text (in quotes where it looks like something else) or a whole number"),
        ("flow.ahead_s=10", "must be less than flow.ring_s, which is 10"),
        ("flow.first_chunk_tokens=51", "exceeds flow.chunk_tokens, which is 50"),
        ("player.prebuffer_ms=4001", "at most 4000"),
        ("player.output=wav", "wav:PATH"),
        ("player.output=wav:", "wav:PATH"),
        ("player.output=off", "allowed: auto, speaker, none"),
        ("stages.t3.device=gpu", "allowed: auto, cpu, mps, cuda, cuda:0"),
        ("stages.s3gen.device=cuda:one", "stages.s3gen.device"),
        ("supervise.hang_s=0.5", "set hang_s to several times progress_s"),
        ("text.bind=127.0.0.1:5570", "expected tcp://127.0.0.1:5570 or ipc:///path"),
        ("text.bind=tcp://127.0.0.1", "expected HOST:PORT"),
        ("text.bind=tcp://127.0.0.1:70000", "expected HOST:PORT"),
        ("text.bind=tcp://::1:5570", "in brackets"),
        ("text.bind=ipc://", "ipc://PATH"),
        ("text.bind=ipc:///" + "x" * 120, "at most 100 bytes"),
        ("gateway.bind=8880", "gateway.bind: '8880': expected HOST:PORT"),
    ],
)
def test_an_impossible_value_is_refused_with_what_is_allowed(override: str, says: str) -> None:
    message = refused(override)
    assert says in message
    assert override.partition("=")[0] in message


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:5570", "tcp://*:5570", "tcp://192.168.1.2:5570", "tcp://eth0:5570"])
def test_an_address_that_others_can_reach_needs_keys(bind: str) -> None:
    assert "refused without keys; set text.curve" in refused(f"text.bind={bind}")
    assert load_config(None, [f"text.bind={bind}", "text.curve=keys"]).text.bind == bind


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["gateway.bind=0.0.0.0:8880"], "refused without keys; set gateway.api_keys"),
        (["gateway.bind=192.168.1.2:8880"], "refused without keys"),
        (["gateway.bind='[::]:8880'"], "refused without keys"),
        (["gateway.origins=['*']"], "would let every web page speak here"),
        (["gateway.origins=[example.org]"], "expected one like https://example.org"),
        (["gateway.origins=['https://example.org/path']"], "is no origin"),
        (["gateway.hosts=['*']"], "is no name of a host"),
        (["gateway.api_keys=[short]"], "a key is 8 to 200"),
        (["gateway.api_keys=['with a space']"], "a key is 8 to 200"),
        (["gateway.wyoming=0.0.0.0:10200"], "list in gateway.wyoming_from who may come"),
        (["gateway.wyoming_from=[somewhere]"], "gateway.wyoming_from[0]"),
        (["gateway.wyoming=127.0.0.1:10200", "gateway.bind=off"], "there is no gateway, as gateway.bind is off"),
        (["gateway.bind=on"], "expected HOST:PORT with a port from 1 to 65535, or 0 for any free one; or off"),
    ],
)
def test_a_gateway_that_is_open_to_whom_it_should_not_be_is_refused(overrides: list[str], says: str) -> None:
    assert says in refused(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["gateway.bind=0.0.0.0:8880", "gateway.api_keys=[long-enough]"],
        ["gateway.bind='*:8880'", "gateway.api_keys=[long-enough]"],
        ["gateway.bind=localhost:8880"],
        ["gateway.origins=['*']", "gateway.api_keys=[long-enough]"],
        ["gateway.origins=['http://localhost:3000', 'https://[::1]:8443']"],
        ["gateway.wyoming=0.0.0.0:10200", "gateway.wyoming_from=[192.168.1.0/24]"],
    ],
)
def test_a_gateway_with_keys_may_be_open(overrides: list[str]) -> None:
    load_config(None, overrides)


@pytest.mark.parametrize("written_as", ["off", "false", "no", "'off'"])
def test_off_is_off_however_yaml_reads_it(tmp_path: Path, written_as: str) -> None:
    config = load_config(written(tmp_path, f"gateway: {{bind: {written_as}, wyoming: {written_as}}}\n"))
    assert (config.gateway.bind, config.gateway.wyoming) == ("off", "off")
    assert load_config(None, ["gateway.bind=off"]).gateway.bind == "off"


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "tcp://[::1]:5570", "ipc:///tmp/x.sock"])
def test_addresses_of_this_machine_need_no_keys(bind: str) -> None:
    assert load_config(None, [f"text.bind={bind}"]).text.bind == bind


def test_overrides_are_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "stages: {t3: {device: cpu, workers: 2}}\nflow:\n")
    config = load_config(
        path, ["stages.t3.device=cuda:1", "stages.t3.cpus=[0, 1]", "flow.ahead_s=2", "supervise.standby=true"]
    )
    assert config.stages.t3.device == "cuda:1"
    assert config.stages.t3.workers == 2
    assert config.stages.t3.cpus == (0, 1)
    assert config.flow.ahead_s == 2.0
    assert config.supervise.standby is True


def test_text_in_an_override_is_taken_as_it_stands() -> None:
    config = load_config(
        None, ["voices.default=on", "text.curve=", "voices.language=no", "player.output=wav:a #1: x.wav"]
    )
    assert (config.voices.default, config.text.curve, config.voices.language) == ("on", "", "no")
    assert config.player.output == "wav:a #1: x.wav"
    assert load_config(None, ["voices.default='en-us+f3'"]).voices.default == "en-us+f3"


def test_a_device_may_be_a_name_or_a_number() -> None:
    assert load_config(None, ["player.device=3"]).player.device == 3
    assert load_config(None, ["player.device=pulse"]).player.device == "pulse"


@pytest.mark.parametrize("override", ["flow.ring_s", "=3", "flow..ring_s=3"])
def test_an_override_without_key_or_value_says_how_to_write_one(override: str) -> None:
    assert "expected KEY=VALUE" in refused(override)


def test_an_override_below_a_value_names_that_value() -> None:
    assert "flow.ring_s is 3, not a section" in refused("flow.ring_s=3", "flow.ring_s.deep=4")


@pytest.mark.parametrize("override", ["player.device=2001-99-99", "model.settings=" + "[" * 5000])
def test_yaml_that_means_nothing_is_told_as_broken(override: str) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(None, [override])


def test_broken_yaml_and_duplicate_keys_are_told_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)not YAML.*line 1"):
        load_config(written(tmp_path, "flow: [1\n"))
    with pytest.raises(ConfigError, match=r"(?s)'ring_s' stands twice.*line 3"):
        load_config(written(tmp_path, "flow:\n  ring_s: 4\n  ring_s: 8\n"))
    with pytest.raises(ConfigError, match="stands where a section is expected"):
        load_config(written(tmp_path, "- flow\n"))


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_config(tmp_path / "binary.yaml")
