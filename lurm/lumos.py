"""LUMOS: many behaviors of a user at once, from their days so far and from what is already known of the days to come.

    x_t = relu(W [E_a(activity of day t); E_s(what the user is); E_c(what is on at day t)]) + place(t)       past
    q_j = relu(W_q E_c(date of day T + j)) + place(T + j)                                                    future
    history = encoder(user, x_1 ... x_T)     both ways, padding masked
    z_j     = decoder(q_j, history)          cross-attention alone: no future day sees another
    heads   "sequence": z_j -> rates and amounts of day j, added up;  "aggregated": z_1 ... z_F -> targets

Paper: LUMOS (arXiv 2512.08957).
Departure: the user is a token of their own, so that somebody without a day has something to be read from; what happens
within a horizon is made of its days, p = 1 - (1 + Λ/r)^-r with Λ the sum of daily rates (what is asked for at one
horizon is learned at all others); and rates have a linear part, log λ_j = head(z_j) + w_c c_j + w_s s, from which the
training starts (``training.rates``). Events to come are in it alone, w_c and by what users are, and so is on which
weekdays users come (``training.effects``): so an event does on a day what it did on others, however far that day is,
and the network adds no chance to that. What happens once leaves as much on any day, so amounts of horizons fit each
other and move as days do. After the training each target has a line of its own by what the user is, o_q s, added to its
logit, and an amount three more: for its log, for how far amounts lie from that, and for what of both is guessed
(``training.amending``).

Letters: B users, T days of the past, F of the future, U groups of users who see one calendar, C features of a day in
the calendar, D width, Q targets, H channels, A amounts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.beginnings import FINE, LEAST_SPREAD, Amounts, Beginning, Lines, bent, leaning
from lurm.bounds import AT_LEAST_ONE, Bound, check
from lurm.calendars import WEEKDAYS
from lurm.days import signed_log
from lurm.errors import UsageError
from lurm.rhythm import N_HABITS
from lurm.stack import Stack
from lurm.targets import Labels, Questions
from lurm.tokens import Tokens
from lurm.transformer import Place, PositionKind, Transformer, TransformerShape, seen_keys

REVISION = 10
"""Of the arithmetic; weights of another one mean something else."""
Weighting = Literal["sum", "uncertainty", "learned"]
Head = Literal["sequence", "aggregated"]
Context = Literal["both", "past", "future", "none"]
_ACTIVITY, _EVENT, _STATIC = 128, 128, 64  # widths of the pathways
_MOST_RATE = 6.0  # log of most happenings per day
_LEAST_MORE = -0.95  # of what happens on a day, by what nobody knows yet
_MOST_AMOUNT = 12.0  # signed log of most units


@dataclass(frozen=True, slots=True)
class LumosConfig:
    """The shape of the network.

    Attributes:
        width: D.
        n_heads: of attention.
        encoder_blocks, decoder_blocks: layers.
        hidden: width of a feed-forward layer, as a multiple of D.
        days: T, of the past that are read one by one.
        horizon: F, most days that can be foretold.
        positions: of days.
        context: of which days it reads what is on by the calendar, beside their dates; all but "both" are ablations.
        head: see above.
        weighting: of the losses of targets: their "sum"; by learned "uncertainty" (Kendall et al. 2018); or shares
            that are "learned" freely, none of which may vanish.
        dropout: in training.
    """

    width: int = 64
    n_heads: int = 4
    encoder_blocks: int = 2
    decoder_blocks: int = 1
    hidden: float = 2.0
    days: int = 180
    horizon: int = 28
    positions: PositionKind = "learned"
    context: Context = "both"
    head: Head = "sequence"
    weighting: Weighting = "sum"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check(self, days=Bound(least=7, most=3660), horizon=Bound(least=1, most=366), encoder_blocks=AT_LEAST_ONE)
        for name, kinds in (("head", Head), ("weighting", Weighting), ("context", Context)):
            if (value := getattr(self, name)) not in get_args(kinds):
                raise UsageError(f"{name} is {value!r}, expected {', '.join(get_args(kinds))}")
        self.stack(1), self.stack(self.decoder_blocks)

    def stack(self, n_blocks: int) -> TransformerShape:
        """The shape of a stack of blocks."""
        rotary = self.positions == "rotary"
        return TransformerShape(self.width, self.n_heads, n_blocks, self.hidden, self.dropout, rotary)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Inputs(NamedTuple):
    """Tokens as tensors.

    Attributes:
        place_s: (S,) b·T + t of each day that is not empty.
        activity_sf: what happened on it.
        real_bt: (B, T) bool.
        static_bs: of users.
        habit_bwx: how often they act on each weekday.
        past_utc, future_ufc: what is on.
        group_b: (B,) which of the U calendars a user sees.
        asked_ufq: 1 on the days that count for a target.
    """

    place_s: Tensor
    activity_sf: Tensor
    real_bt: Tensor
    static_bs: Tensor
    habit_bwx: Tensor
    past_utc: Tensor
    future_ufc: Tensor
    group_b: Tensor
    asked_ufq: Tensor

    @classmethod
    def of(cls, tokens: Tokens, questions: Questions) -> Self:
        """What the network reads; nothing is copied but where numpy has views."""
        past_utc, ahead = tokens.days.contexts_uwc[:, : tokens.real_bt.shape[1]], tokens.ahead
        arrays = (
            *(tokens.place_s, tokens.activity_sf, tokens.real_bt, tokens.static_bs, tokens.habit_bwx),
            *(past_utc, ahead.contexts_uwc, ahead.group_b, questions.asked(ahead)),
        )
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


class Daily(NamedTuple):
    """What the network says of the days to come, one by one, under the head "sequence".

    Attributes:
        own_bfh: logs of daily rates, had the days nothing but their dates.
        unheard_bfh: added to these where nothing is known to be on, for what may yet be.
        effect_bfh: added to them by what is known, and by what may yet be beside it.
        amount_ba: amounts of what happens once, in their units.
        burst_bh: the larger, the less do those who act often stand for all.
    """

    own_bfh: Tensor
    unheard_bfh: Tensor
    effect_bfh: Tensor
    amount_ba: Tensor
    burst_bh: Tensor

    @property
    def rate_bfh(self) -> Tensor:
        """Logs of daily rates."""
        return (self.own_bfh + self.effect_bfh).clamp(-20.0, _MOST_RATE)

    def plain(self) -> Self:
        """Had nothing been known to be on; the same where nothing is."""
        is_plain = torch.equal(self.effect_bfh, self.unheard_bfh)
        return self if is_plain else self._replace(effect_bfh=self.unheard_bfh)


class Foretold(NamedTuple):
    """What the network says of B users.

    Attributes:
        logit_bq: that a target happens; of amounts, that there is one.
        expected_bq: of an amount, in its units; 0 for other targets.
        given_bq: likewise, given that there is one, by the days alone.
        times_bq: how often an amount is left, by the days alone (``Beginning.swell_a``); 1 under the head "aggregated".
        days: of which all of it is made; None under that head.
    """

    logit_bq: Tensor
    expected_bq: Tensor
    given_bq: Tensor
    times_bq: Tensor
    days: Daily | None


class Stacks(NamedTuple):
    """Encoder and decoder as compiled loops."""

    encoder: Stack
    decoder: Stack


class Lumos(nn.Module):
    """The network.

    Args:
        config: its shape.
        questions: what it is asked.
        widths: of activity, of statics and of a day in the calendar.
    """

    sign_q: Tensor
    own_qs: Tensor
    typical_qx: Tensor
    spread_qx: Tensor
    lean_qk: Tensor
    doubt_hcc: Tensor
    swell_a: Tensor
    own_hks: Tensor
    reach_2hk: Tensor
    far_fh: Tensor
    habit_hx: Tensor
    unheard_fk: Tensor
    channel_q: Tensor
    amount_q: Tensor
    dates_c: Tensor

    def __init__(self, config: LumosConfig, questions: Questions, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.widths = config, widths
        activity, static, event = widths
        self.activity = _pathway(activity, _ACTIVITY)
        self.static = _pathway(static, _STATIC)
        self.event = _pathway(event, _EVENT)
        # one matrix over the three side by side, kept in its three parts, so that days that are alike share their part
        self.fuse_activity = nn.Linear(_ACTIVITY, config.width)
        self.fuse_static = nn.Linear(_STATIC, config.width, bias=False)
        self.fuse_event = nn.Linear(_EVENT, config.width, bias=False)
        self.query = nn.Linear(_EVENT, config.width)
        self.place = Place(config.positions, config.width, config.days + config.horizon)
        self.user_d = nn.Parameter(torch.zeros(config.width))
        self.encoder = Transformer(config.stack(config.encoder_blocks))
        self.decoder = Transformer(config.stack(config.decoder_blocks), crossed=True)
        n_out = questions.n_channels + questions.n_amounts
        if config.head == "sequence":
            inner, n_in, n_last = config.width, config.width, questions.n_channels
        else:
            inner, n_in, n_last = 2 * config.width, config.horizon * config.width, 2 * len(questions)
        self.head = nn.Sequential(nn.Linear(n_in, inner), nn.GELU(), nn.Linear(inner, n_last))
        self.wide_event = nn.Linear(event, questions.n_channels, bias=False)
        self.wide_static = nn.Linear(static, n_out)
        self.of_user = nn.Linear(config.width, n_out)  # how bursts of them are, and their amounts
        for name, array in Lines.none(len(questions), static)._asdict().items():
            self.register_buffer(name, torch.from_numpy(array))
        self.register_buffer("doubt_hcc", torch.zeros(questions.n_channels, event, event))
        self.register_buffer("swell_a", torch.ones(questions.n_amounts))
        self.register_buffer("far_fh", torch.zeros(config.horizon, questions.n_channels))
        self.register_buffer("habit_hx", torch.zeros(questions.n_channels, N_HABITS))
        self.register_buffer("unheard_fk", torch.zeros(config.horizon, len(questions.kinds)))
        self.register_buffer("own_hks", torch.zeros(questions.n_channels, len(questions.kinds), static))
        self.register_buffer("reach_2hk", torch.zeros(2, questions.n_channels, len(questions.kinds)))
        self.weight_q = nn.Parameter(torch.zeros(2 * len(questions)))
        self.n_channels, self.n_targets = questions.n_channels, len(questions)
        is_churn = [target.kind == "churn" for target in questions.targets]
        self.register_buffer("sign_q", torch.where(torch.tensor(is_churn), -1.0, 1.0), persistent=False)
        self.register_buffer("channel_q", torch.from_numpy(questions.channel_q), persistent=False)
        self.register_buffer("amount_q", torch.from_numpy(questions.amount_q), persistent=False)
        is_date_c = torch.arange(event) < event - len(questions.kinds)
        self.register_buffer("dates_c", is_date_c.float(), persistent=False)

    def start(self, seed: int, begin: Beginning | None = None) -> None:
        """Initialise.

        Args:
            seed: of the weights.
            begin: the linear part; None: it is nothing, which takes the training longer.
        """
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    module.weight.copy_(torch.randn(module.weight.shape, generator=rng) * module.in_features**-0.5)
                    if module.bias is not None:
                        module.bias.zero_()
            self.encoder.start(seed + 1)
            self.decoder.start(seed + 2)
            for parameter in (*self.place.parameters(), self.user_d):
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.02)
            self.of_user.weight.zero_()
            self.wide_event.weight.zero_()
            self.wide_static.weight.zero_()
            self.wide_static.bias[: self.n_channels] = -4.0
            if self.config.head == "sequence":
                last = self.head[-1]
                assert isinstance(last, nn.Linear)
                last.weight.mul_(0.02)
            if begin is not None:
                self.wide_event.weight.copy_(torch.from_numpy(begin.event_hc))
                self.wide_static.weight.copy_(torch.from_numpy(begin.static_xs))
                self.wide_static.bias.copy_(torch.from_numpy(begin.bias_x))
                self.doubt_hcc.copy_(torch.from_numpy(begin.doubt_hcc))
                self.swell_a.copy_(torch.from_numpy(begin.swell_a))

    def forward(self, inputs: Inputs) -> Foretold:
        """What will happen."""
        inputs = self.seen(inputs)
        return self.foretell(inputs, self.remember(inputs))

    @property
    def reads_ahead(self) -> bool:
        """Whether it reads what is on in days to come, by its ``context``."""
        return self.config.context in {"both", "future"}

    def seen(self, inputs: Inputs) -> Inputs:
        """What it reads of them, by its ``context``; ``remember`` and ``foretell`` take these."""
        past_utc, future_ufc = inputs.past_utc, inputs.future_ufc
        if self.config.context not in {"both", "past"}:
            past_utc = past_utc * self.dates_c
        if not self.reads_ahead:
            future_ufc = future_ufc * self.dates_c
        return inputs._replace(past_utc=past_utc, future_ufc=future_ufc)

    def compiled(self) -> Stacks | None:
        """The stacks as they are now, for answers without gradients; None: days are placed by rotation."""
        config, found = self.config, []
        for stack, n_blocks in ((self.encoder, config.encoder_blocks), (self.decoder, config.decoder_blocks)):
            state = {name: tensor.detach().numpy() for name, tensor in stack.state_dict().items()}
            if not Stack.fits(shape := config.stack(n_blocks)):
                return None
            found.append(Stack(shape, state, crossed=stack.crossed))
        return Stacks(*found)

    def remember(self, inputs: Inputs, stacks: Stacks | None = None) -> Tensor:
        """(B, 1 + T, D) the history, read: the user first, then the days; by compiled stacks or with gradients."""
        x_btd = self.fused(inputs)
        is_real = F.pad(inputs.real_bt, (1, 0), value=True)
        if stacks is not None:
            return torch.from_numpy(stacks.encoder(x_btd.numpy(), is_real.numpy()))
        at = torch.arange(-1, inputs.real_bt.shape[1], device=x_btd.device) + 1
        memory: Tensor = self.encoder(x_btd, mask=seen_keys(is_real), at_bt=at)
        return memory

    def fused(self, inputs: Inputs) -> Tensor:
        """(B, 1 + T, D) tokens as they enter the encoder."""
        (n_users, n_days), width = inputs.real_bt.shape, self.config.width
        static_bd = self.fuse_static(self.static(inputs.static_bs))
        event_utd = self.fuse_event(self.event(inputs.past_utc))
        nothing_d = self.fuse_activity(self.activity(inputs.activity_sf.new_zeros(self.widths[0])))
        x_btd = event_utd[inputs.group_b] + (static_bd + nothing_d)[:, None]
        done_sd = self.fuse_activity(self.activity(inputs.activity_sf)) - nothing_d
        x_btd = x_btd.reshape(-1, width).index_add(0, inputs.place_s, done_sd).view(n_users, n_days, width)
        x_btd = self.place(F.relu(x_btd), torch.arange(n_days, device=x_btd.device))
        user_bd = F.relu(static_bd + nothing_d) + self.user_d
        return torch.cat([user_bd[:, None], x_btd], dim=1)

    def foretell(self, inputs: Inputs, memory_bsd: Tensor, stacks: Stacks | None = None) -> Foretold:
        """What will happen, by histories that were read; by compiled stacks or with gradients."""
        config, n_days = self.config, inputs.real_bt.shape[1]
        at = torch.arange(n_days, n_days + config.horizon, device=memory_bsd.device)
        dates_ufc = inputs.future_ufc if config.head == "aggregated" else inputs.future_ufc * self.dates_c
        query_ufd = self.place(F.relu(self.query(self.event(dates_ufc))), at)
        is_real = F.pad(inputs.real_bt, (1, 0), value=True)
        query_bfd = query_ufd[inputs.group_b]
        if stacks is not None:
            every_bf = np.ones(query_bfd.shape[:2], bool)
            z_bfd = torch.from_numpy(stacks.decoder(query_bfd.numpy(), every_bf, memory_bsd.numpy(), is_real.numpy()))
        else:
            z_bfd = self.decoder(query_bfd, memory_bsd, mask=seen_keys(is_real), at_bt=at + 1)
        if config.head == "aggregated":
            logit_bq, amount_bq = self.head(z_bfd.flatten(1)).chunk(2, dim=-1)
            amount_bq = _from_signed_log(amount_bq) * (self.amount_q >= 0)
            logit_bq = logit_bq + self._own(inputs)
            return Foretold(logit_bq, amount_bq * torch.sigmoid(logit_bq), amount_bq, torch.ones_like(logit_bq), None)
        static_bx, dates_ufh = self.wide_static(inputs.static_bs), self.wide_event(dates_ufc)
        own_bfh = self.head(z_bfd) + static_bx[:, None, : self.n_channels] + dates_ufh[inputs.group_b] + self.far_fh
        weekday_bfw = dates_ufc[..., :WEEKDAYS][inputs.group_b]
        own_bfh = own_bfh + weekday_bfw @ inputs.habit_bwx @ self.habit_hx.T
        user_bx = self.of_user(memory_bsd[:, 0])
        amount_ba = _from_signed_log((static_bx + user_bx)[:, self.n_channels :])
        days = Daily(own_bfh, *self.effects(inputs), amount_ba, user_bx[:, : self.n_channels])
        return self.added_up(inputs, days)

    def effects(self, inputs: Inputs, off_bhk: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """(B, F, H) each: what is added to logs of rates where nothing is known to be on, and by what is known.

        An event does something to all, and to some more than to others. On far days something may yet be on that nobody
        knows of; on days of an event, of other kinds alone.

        Args:
            inputs: what is on.
            off_bhk: by how much more than measured events do; 0: as measured.
        """
        n_kinds = self.own_hks.shape[1]
        on_bfk = inputs.future_ufc[..., inputs.future_ufc.shape[2] - n_kinds :][inputs.group_b]
        lift_bhk = (
            self.own_lifts(inputs.static_bs)
            + self.wide_event.weight[:, self.wide_event.in_features - n_kinds :]
            + off_bhk
        )
        known_bfh = torch.einsum("bfk,bhk->bfh", on_bfk, lift_bhk)
        if not bool(self.unheard_fk.any()):
            return torch.zeros_like(known_bfh), known_bfh

        def perhaps(share_bfk: Tensor) -> Tensor:
            more_bfh = torch.einsum("bfk,bhk->bfh", share_bfk, lift_bhk.exp() - 1)
            return torch.log1p(more_bfh.clamp_min(_LEAST_MORE))

        unheard_bfk = self.unheard_fk.expand_as(on_bfk)
        return perhaps(unheard_bfk), known_bfh + perhaps(unheard_bfk * (1 - on_bfk).clamp_min(0))

    def own_lifts(self, static_bs: Tensor) -> Tensor:
        """(B, H, K) how much more events do to each user than to all, in logs."""
        own_bhk = torch.einsum("bs,hks->bhk", static_bs, self.own_hks)
        return torch.minimum(torch.maximum(own_bhk, self.reach_2hk[0]), self.reach_2hk[1])

    def added_up(self, inputs: Inputs, days: Daily) -> Foretold:
        """Targets from days."""
        daily_bfq = days.rate_bfh.exp()[..., self.channel_q] * inputs.asked_ufq[inputs.group_b]
        sum_bq = times_bq = daily_bfq.sum(1)
        r_bq = F.softplus(days.burst_bh + 2.0)[:, self.channel_q] + 1e-2
        days_bq = _logit_of_none(r_bq * torch.log1p(sum_bq / r_bq)) * self.sign_q
        expected_bq = torch.zeros_like(days_bq)
        if days.amount_ba.shape[1]:
            amount_q, chance_bfq = self.amount_q.clamp_min(0), -torch.expm1(-daily_bfq)
            often_bfq = (daily_bfq / chance_bfq.clamp_min(1e-9)).clamp_min(1.0) ** self.swell_a[amount_q]
            times_bq = (chance_bfq * often_bfq).sum(1)
            expected_bq = times_bq * days.amount_ba[:, amount_q] * (self.amount_q >= 0)
        given_bq = expected_bq / torch.sigmoid(days_bq).clamp_min(1e-6)
        return Foretold(days_bq + self._own(inputs), expected_bq, given_bq, times_bq, days)

    def amounts(self, inputs: Inputs, given_bq: Tensor) -> Amounts:
        """What lines say of amounts that are given as days have them; without gradients."""
        bent_bx = torch.from_numpy(bent(inputs.static_bs.numpy()))
        typical_bq, spread_bq = (
            F.linear(bent_bx, line_qx[:, :-1], line_qx[:, -1]).numpy() for line_qx in (self.typical_qx, self.spread_qx)
        )
        log_bq, spread_bq = signed_log(given_bq.numpy() * FINE) + typical_bq, np.maximum(spread_bq, LEAST_SPREAD)
        return Amounts(log_bq, spread_bq, (leaning(log_bq, spread_bq) * self.lean_qk.numpy()).sum(-1))

    def amend(self, lines: Lines) -> None:
        """Take these lines for those it has."""
        for name, array in lines._asdict().items():
            self.get_buffer(name).copy_(torch.from_numpy(array))

    def _own(self, inputs: Inputs) -> Tensor:
        """(B, Q) what each target's own line says."""
        return F.linear(inputs.static_bs, self.own_qs[:, :-1], self.own_qs[:, -1])

    def losses(self, foretold: Foretold, labels: Labels, units_q: Tensor) -> tuple[Tensor, Tensor]:
        """(2Q,) the loss of each target: of whether it happens, then of its amount; and of the days, ().

        What is not known costs nothing: such losses, and amounts nobody asked for, are NaN.
        Paper: binary cross-entropy; squared error of amounts that are not zero.
        Departure: of their signed logarithms, in which large customers do not drown the others.
        """
        happened_bq, amount_bq = torch.from_numpy(labels.happened_bq), torch.from_numpy(labels.amount_bq)
        known_bq = ~torch.isnan(happened_bq)
        wrong_bq = F.binary_cross_entropy_with_logits(foretold.logit_bq, happened_bq.nan_to_num(), reduction="none")
        happen_q = _mean_where(wrong_bq, known_bq)
        some_bq = ~torch.isnan(amount_bq) & (amount_bq != 0)
        given_bq = foretold.expected_bq / torch.sigmoid(foretold.logit_bq).detach().clamp_min(1e-6)
        target_bq = _signed_log(amount_bq.nan_to_num() / units_q)
        amount_q = _mean_where((_signed_log(given_bq) - target_bq).square(), some_bq)
        daily = happen_q.new_zeros(())
        if foretold.days is not None:
            happened_bfh = torch.from_numpy(labels.daily_bwc)
            logit_bfh = _logit_of_none(foretold.days.rate_bfh.exp())
            daily = F.binary_cross_entropy_with_logits(logit_bfh, happened_bfh)
        return torch.cat([happen_q, amount_q]), daily

    def weighed(self, losses_q: Tensor) -> Tensor:
        """The losses of all targets as one number; those that are NaN count nothing.

        Paper: uncertainty weighting, L_i / ((1 + r_i) σ_i²) + log σ_i with r_i = 1 for amounts.
        """
        known = ~torch.isnan(losses_q)
        losses_q, weight_q = losses_q[known], self.weight_q[known]
        if self.config.weighting == "sum":
            return losses_q.sum()
        if self.config.weighting == "uncertainty":
            is_amount = torch.cat([torch.zeros(self.n_targets), torch.ones(self.n_targets)])[known]
            return (losses_q * torch.exp(-2 * weight_q) / (1 + is_amount) + weight_q).sum()
        share_q = torch.softmax(weight_q, 0) * len(weight_q)
        return (share_q * losses_q - share_q.log()).sum()


def _pathway(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def _logit_of_none(x: Tensor) -> Tensor:
    """The logit of 1 - exp(-x), x > 0."""
    x = x.clamp_min(1e-7)
    return x + torch.log(-torch.expm1(-x))


def _signed_log(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log1p(x.abs())


def _from_signed_log(x: Tensor) -> Tensor:
    x = x.clamp(-_MOST_AMOUNT, _MOST_AMOUNT)
    return torch.sign(x) * torch.expm1(x.abs())


def _mean_where(x_bq: Tensor, where_bq: Tensor) -> Tensor:
    """(Q,) means of each column where something is known; NaN where nothing is."""
    n_q = where_bq.sum(0)
    return torch.where(n_q > 0, (x_bq * where_bq).sum(0) / n_q.clamp_min(1), torch.nan)
