"""What is attached to the model acts, knows when it is, and leaves nothing behind."""

import inspect
from types import SimpleNamespace

import pytest

from vgift_plugin.errors import ConfigError, HostMismatchError

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def batch():
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (2, 9), generator=generator)
    ids[0, 2] = -200
    labels = ids.clone()
    labels[:, :4] = -100
    images = torch.randn(2, 3, 28, 28, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids).bool(), "labels": labels, "images": images}


class Recorder:
    """A step that writes down what it is told and changes nothing."""

    def __init__(self):
        self.told = []

    def attach(self, module):
        self.told.append("attach")

    def detach(self):
        self.told.append("detach")

    def begin(self, moment):
        self.told.append(moment)

    def before(self, given):
        self.given = given
        return given

    def after(self, prepared, given):
        self.prepared = prepared
        assert given["labels"] is self.given["labels"]
        return prepared

    def forward(self, module, args, kwargs, output):
        self.told.append("forward")


class AddOne:
    """A step that changes what goes in and what comes out, to show the order."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def before(self, given):
        self.log.append(f"before {self.name}")
        return given

    def after(self, prepared, given):
        self.log.append(f"after {self.name}")
        return prepared._replace(inputs_embeds=prepared.inputs_embeds + 1)

    def pre_forward(self, module, args, kwargs):
        self.log.append(f"pre {self.name}")
        return args, kwargs

    def forward(self, module, args, kwargs, output):
        self.log.append(f"post {self.name}")
        return output


ARGS = SimpleNamespace(n_gpu=1, seed=42, process_index=3)


def state(step):
    return SimpleNamespace(global_step=step)


def test_the_same_methods_before_and_after_and_the_same_loss(tiny_llava, batch):
    from vgift_plugin.hosts.model_hooks import PREPARE, Inside

    kind, own = type(tiny_llava), dict(vars(tiny_llava))
    on_class = (getattr(kind, PREPARE), kind.forward)
    signature = inspect.signature(tiny_llava.forward)
    method = getattr(tiny_llava, PREPARE)
    plain = tiny_llava(**batch).loss
    recorder = Recorder()
    inside = Inside([recorder])
    for _ in range(2):  # begun again without an end, as the search for a batch size does
        inside.on_train_begin(ARGS, state(0), None, model=tiny_llava)
    assert getattr(tiny_llava, PREPARE) != method and PREPARE in vars(tiny_llava)
    assert inspect.signature(tiny_llava.forward) == signature
    assert (getattr(kind, PREPARE), kind.forward) == on_class
    assert tiny_llava(**batch).loss == plain
    assert set(recorder.given) >= {"input_ids", "position_ids", "attention_mask", "labels", "images", "image_sizes"}
    assert recorder.prepared.inputs_embeds.shape == (2, 9 - 1 + 4, 32)
    inside.on_train_end(None, None, None)
    inside.on_train_end(None, None, None)
    assert vars(tiny_llava).keys() == own.keys() and getattr(tiny_llava, PREPARE) == method
    assert getattr(tiny_llava, PREPARE).__func__ is method.__func__ is on_class[0]
    assert [one for one in recorder.told if isinstance(one, str)] == ["attach", "detach", "attach", "forward", "detach"]


def test_a_step_knows_when_it_is(tiny_llava, batch):
    from vgift_plugin.hosts.model_hooks import Inside, Moment

    recorder = Recorder()
    inside = Inside([recorder])
    inside.on_train_begin(ARGS, state(7), None, model=tiny_llava)
    inside.on_step_begin(ARGS, state(7), None)
    try:
        tiny_llava.train()
        tiny_llava(**batch)
        tiny_llava(**batch)
        tiny_llava.eval()
        tiny_llava(**batch)
        tiny_llava.train()
        inside.on_step_begin(ARGS, state(8), None)
        tiny_llava(**batch)
        tiny_llava.generate(batch["input_ids"][:1], images=batch["images"][:1], max_new_tokens=1)
    finally:
        inside.detach()
        tiny_llava.eval()
    moments = [one for one in recorder.told if isinstance(one, Moment)]
    assert moments[:4] == [
        Moment(42, 7, 0, 3, True),
        Moment(42, 7, 1, 3, True),
        Moment(42, 7, 2, 3, False),
        Moment(42, 8, 0, 3, True),
    ]
    assert not moments[4].training  # generate's own preparation, of a model in training mode


def test_the_first_step_is_the_outermost(tiny_llava, batch):
    from vgift_plugin.hosts.model_hooks import Inside

    log = []
    inside = Inside([AddOne(log, "a"), AddOne(log, "b")])
    inside.attach(tiny_llava)
    try:
        tiny_llava(**batch)
    finally:
        inside.detach()
    assert log == ["pre a", "pre b", "before a", "before b", "after b", "after a", "post b", "post a"]


def test_under_peft_and_after_an_accelerate_like_wrap(tiny_llava, batch):
    """peft passes attributes on and calls `forward` past torch's hooks; accelerate leaves a `forward` on the model."""
    import copy

    from peft import LoraConfig, get_peft_model

    from vgift_plugin.hosts.model_hooks import PREPARE, Inside, find_host

    model = get_peft_model(copy.deepcopy(tiny_llava), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    host = find_host(model)
    assert type(host) is type(tiny_llava)
    wrapped = host.forward
    host.forward = lambda *args, **kwargs: wrapped(*args, **kwargs)
    theirs = host.forward
    recorder = Recorder()
    inside = Inside([recorder])
    inside.on_train_begin(ARGS, state(0), None, model=model)
    model(**batch)
    assert recorder.told[-1] == "forward" and recorder.prepared.labels is not None
    inside.on_train_end(None, None, None)
    assert host.forward is theirs and PREPARE not in vars(host)


def test_a_wrapper_that_keeps_the_forward_it_found(tiny_llava, batch):
    """As peft 0.4's does; whoever goes past the forward in another way is told, since nothing would be dropped."""
    import torch

    from vgift_plugin.hosts.model_hooks import PREPARE, Inside

    class Keeper(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.forward = model.forward

    keeper = Keeper(tiny_llava)
    kept, past = keeper.forward, tiny_llava.forward
    recorder = Recorder()
    inside = Inside([recorder])
    inside.on_train_begin(ARGS, state(0), None, model=keeper)
    try:
        keeper(**batch)
        assert recorder.told[-1] == "forward"
        tiny_llava.train()
        with pytest.raises(HostMismatchError, match=f"{PREPARE} was called in training, and not by"):
            past(**batch)
    finally:
        inside.on_train_end(None, None, None)
        tiny_llava.eval()
    assert keeper.forward is kept and "forward" not in vars(tiny_llava)


def test_what_it_cannot_do_is_said_and_nothing_is_changed(tiny_llava):
    from vgift_plugin.hosts.model_hooks import PREPARE, Inside

    with pytest.raises(HostMismatchError, match=f"Linear: expected a model with {PREPARE}"):
        import torch

        Inside([]).on_train_begin(ARGS, state(0), None, model=torch.nn.Linear(1, 1))
    several = SimpleNamespace(n_gpu=2, seed=0, process_index=0)
    with pytest.raises(ConfigError, match="one process on 2 GPUs"):
        Inside([]).on_train_begin(several, state(0), None, model=tiny_llava)

    class Broken:
        def attach(self, module):
            raise ConfigError("no")

    recorder = Recorder()
    with pytest.raises(ConfigError):
        Inside([recorder, Broken()]).attach(tiny_llava)
    assert recorder.told == ["attach", "detach"] and PREPARE not in vars(tiny_llava)
