"""What is attached to the model acts, knows when it is, and leaves nothing behind."""

import copy
import inspect
from types import SimpleNamespace

import pytest

from vgift_plugin.errors import ConfigError, HostMismatchError

pytestmark = pytest.mark.host
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from vgift_plugin.hosts.llava import LLaVA  # noqa: E402
from vgift_plugin.hosts.model_hooks import ModelHooks, Step, StepInfo  # noqa: E402

HOST = LLaVA()
PREPARE = HOST.prepare
ARGS = SimpleNamespace(n_gpu=1, seed=42, process_index=3)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (2, 9), generator=generator)
    ids[0, 2] = -200
    labels = ids.clone()
    labels[:, :4] = -100
    images = torch.randn(2, 3, 28, 28, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids).bool(), "labels": labels, "images": images}


class Recorder(Step):
    """A step that writes down what it is told and changes nothing."""

    def __init__(self):
        self.told = []

    def attach(self, module):
        self.told.append("attach")

    def detach(self):
        self.told.append("detach")

    def begin(self, info):
        self.told.append(info)

    def prepared(self, prepared):
        self.last = prepared
        return prepared

    def forward(self, module, output, tokens):
        self.told.append("forward")


class ToyHost(LLaVA):
    prepare = "prepare"


class Toy(torch.nn.Module):
    """A model whose preparation returns the positions "none", and `more` values than LLaVA's."""

    def __init__(self, more=()):
        super().__init__()
        self.more = more

    def prepare(self, input_ids, position_ids, attention_mask, past_key_values, labels):
        return (None, "none", attention_mask, past_key_values, input_ids[..., None].float(), labels, *self.more)

    def forward(self, input_ids, labels):
        return f"out {self.prepare(input_ids, None, None, None, labels)[1]} "


def state(step):
    return SimpleNamespace(global_step=step)


def test_the_same_methods_before_and_after_and_the_same_loss(tiny_llava, batch):
    kind, own = type(tiny_llava), dict(vars(tiny_llava))
    on_class = (getattr(kind, PREPARE), kind.forward)
    signature = inspect.signature(tiny_llava.forward)
    method = getattr(tiny_llava, PREPARE)
    plain = tiny_llava(**batch).loss
    recorder = Recorder()
    hooks = ModelHooks(HOST, [recorder])
    for _ in range(2):  # begun again without an end, as the search for a batch size does
        hooks.on_train_begin(ARGS, state(0), None, model=tiny_llava)
    assert getattr(tiny_llava, PREPARE) != method and PREPARE in vars(tiny_llava)
    assert inspect.signature(tiny_llava.forward) == signature
    assert (getattr(kind, PREPARE), kind.forward) == on_class
    assert tiny_llava(**batch).loss == plain
    assert recorder.last.inputs_embeds.shape == (2, 9 - 1 + 4, 32)
    assert recorder.last.image.nonzero().tolist() == [[0, k] for k in range(2, 6)]
    hooks.on_train_end(None, None, None)
    hooks.on_train_end(None, None, None)
    assert vars(tiny_llava).keys() == own.keys() and getattr(tiny_llava, PREPARE) == method
    assert getattr(tiny_llava, PREPARE).__func__ is method.__func__ is on_class[0]
    assert [one for one in recorder.told if isinstance(one, str)] == ["attach", "detach", "attach", "forward", "detach"]


def test_a_step_knows_when_it_is(tiny_llava, batch):
    recorder = Recorder()
    hooks = ModelHooks(HOST, [recorder])
    hooks.on_train_begin(ARGS, state(7), None, model=tiny_llava)
    hooks.on_step_begin(ARGS, state(7), None)
    try:
        tiny_llava.train()
        tiny_llava(**batch)
        tiny_llava(**batch)
        tiny_llava.eval()
        tiny_llava(**batch)
        tiny_llava.train()
        hooks.on_step_begin(ARGS, state(8), None)
        tiny_llava(**batch)
        tiny_llava.generate(batch["input_ids"][:1], images=batch["images"][:1], max_new_tokens=1)
    finally:
        hooks.detach()
        tiny_llava.eval()
    told = [one for one in recorder.told if isinstance(one, StepInfo)]
    assert told[:4] == [
        StepInfo(42, 7, 0, 3, True),
        StepInfo(42, 7, 1, 3, True),
        StepInfo(42, 7, 2, 3, False),
        StepInfo(42, 8, 0, 3, True),
    ]
    assert not told[4].training  # generate's own preparation, of a model in training mode


def test_steps_act_in_their_order_each_on_what_the_one_before_made(tiny_llava, batch):
    log = []

    class Add(Step):
        def __init__(self, name):
            self.name = name

        def prepared(self, prepared):
            log.append(f"prepared {self.name} {prepared.position_ids}")
            return prepared._replace(position_ids=self.name)

        def forward(self, module, output, tokens):
            log.append(f"forward {self.name} {output}")
            return f"{output}{self.name}"

    model, hooks = Toy(), ModelHooks(ToyHost(), [Add("a"), Add("b")])
    hooks.attach(model)
    assert model(input_ids=batch["input_ids"], labels=batch["labels"]) == "out b ab"
    assert log == ["prepared a none", "prepared b a", "forward a out b ", "forward b out b a"]


def test_under_peft_and_after_an_accelerate_like_wrap(tiny_llava, batch):
    """peft passes attributes on and calls `forward` past torch's hooks; accelerate leaves a `forward` on the model."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(tiny_llava), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    own = HOST.model(model)
    assert type(own) is type(tiny_llava)
    wrapped = own.forward
    own.forward = lambda *args, **kwargs: wrapped(*args, **kwargs)
    theirs = own.forward
    recorder = Recorder()
    hooks = ModelHooks(HOST, [recorder])
    hooks.on_train_begin(ARGS, state(0), None, model=model)
    model(**batch)
    assert recorder.told[-1] == "forward" and recorder.last.labels is not None
    hooks.on_train_end(None, None, None)
    assert own.forward is theirs and PREPARE not in vars(own)


class Keeper(torch.nn.Module):
    """A wrapper that keeps the forward it found, as peft 0.4's does."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.forward = model.forward


def test_a_wrapper_that_keeps_the_forward_it_found(tiny_llava, batch):
    """Whoever goes past the forward in another way is told, since nothing would be done."""
    keeper = Keeper(tiny_llava)
    kept, past = keeper.forward, tiny_llava.forward
    recorder = Recorder()
    hooks = ModelHooks(HOST, [recorder])
    hooks.on_train_begin(ARGS, state(0), None, model=keeper)
    try:
        keeper(**batch)
        assert recorder.told[-1] == "forward"
        tiny_llava.train()
        with pytest.raises(HostMismatchError, match=f"{PREPARE} was called in training, and not by"):
            past(**batch)
    finally:
        hooks.on_train_end(None, None, None)
        tiny_llava.eval()
    assert keeper.forward is kept and "forward" not in vars(tiny_llava)


def test_what_it_cannot_do_is_said_and_nothing_is_changed(tiny_llava):
    with pytest.raises(HostMismatchError, match=f"Linear: expected a model with {PREPARE}"):
        ModelHooks(HOST, [Recorder()]).on_train_begin(ARGS, state(0), None, model=torch.nn.Linear(1, 1))
    several = SimpleNamespace(n_gpu=2, seed=0, process_index=0)
    with pytest.raises(ConfigError, match="one process on 2 GPUs"):
        ModelHooks(HOST, [Recorder()]).on_train_begin(several, state(0), None, model=tiny_llava)

    class Broken(Step):
        def attach(self, module):
            raise ConfigError("no")

    recorder = Recorder()
    with pytest.raises(ConfigError):
        ModelHooks(HOST, [recorder, Broken()]).attach(tiny_llava)
    assert recorder.told == ["attach", "detach"] and PREPARE not in vars(tiny_llava)


class Reporter(Recorder):
    """A step that only reports."""

    required = False


class Failing(Reporter):
    def forward(self, module, output, tokens):
        raise RuntimeError("out of memory")


def test_a_step_that_only_reports_steps_aside_and_the_run_goes_on(tiny_llava, batch, caplog):
    plain, reporter = tiny_llava(**batch).loss, Reporter()
    hooks = ModelHooks(HOST, [Failing(), reporter])
    hooks.attach(tiny_llava)
    try:
        assert [tiny_llava(**batch).loss for _ in range(2)] == [plain] * 2
    finally:
        hooks.detach()
    assert caplog.messages == ["Failing reports nothing from here on: RuntimeError: out of memory"]
    assert reporter.told.count("forward") == 2

    class Needed(Failing):
        required = True

    hooks = ModelHooks(HOST, [Needed()])
    hooks.attach(tiny_llava)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            tiny_llava(**batch)
    finally:
        hooks.detach()
    caplog.clear()
    several = SimpleNamespace(n_gpu=2, seed=0, process_index=0)
    ModelHooks(HOST, [Reporter()]).on_train_begin(several, state(0), None, model=tiny_llava)
    ModelHooks(HOST, [Reporter()]).on_train_begin(ARGS, state(0), None, model=torch.nn.Linear(1, 1))
    assert [message.split(":")[0] for message in caplog.messages] == ["Reporter cannot report in this run"] * 2


def test_a_host_that_prepares_otherwise_stops_what_trains_and_not_what_reports(batch, caplog):
    """A fork may return more than six values from its preparation."""
    given = {name: batch[name] for name in ("input_ids", "labels")}
    model = Toy(more=(7,))
    plain = model(**given)
    for step in (Recorder(), Reporter()):
        hooks = ModelHooks(ToyHost(), [step])
        hooks.attach(model)
        try:
            if step.required:
                with pytest.raises(HostMismatchError, match=r"prepare: expected \(input_ids, .*, found 7 values"):
                    model(**given)
            else:
                assert [model(**given) for _ in range(2)] == [plain] * 2
        finally:
            hooks.detach()
    (message,) = caplog.messages
    assert message.startswith("Reporter report nothing in this run: prepare: expected")
