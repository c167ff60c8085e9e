"""The figure to beat: a linear classifier on the frozen base model's features.

If this were as good as the adapter, the data would be too easy to show whether
an export lost the adapter.
"""

import torch
from torch import Tensor, nn

__all__ = ["linear_probe_accuracy"]

L2_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)
_MAX_STEPS = 300


def linear_probe_accuracy(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> float:
    """Fit multinomial logistic regression and return its accuracy on the test rows.

    Features are standardised with the training rows' mean and deviation. The
    penalty is ``strength * sum(weight**2)``; the best of :data:`L2_STRENGTHS` on
    the *test* rows is taken, which can only flatter the probe.

    Args:
        train_x: ``(n, features)`` float32.
        train_y: ``(n,)`` class ids.
        test_x: ``(m, features)`` float32.
        test_y: ``(m,)`` class ids.

    Returns:
        The share of test rows that are right, 0 to 1.
    """
    mean, deviation = train_x.mean(dim=0), train_x.std(dim=0) + 1e-6
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    return max(
        _accuracy(_fit(train_x, train_y, strength), test_x, test_y) for strength in L2_STRENGTHS
    )


def _accuracy(head: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest logit is the label."""
    with torch.inference_mode():
        right: Tensor = head(features).argmax(dim=1) == labels
    return right.double().mean().item()


def _fit(features: Tensor, labels: Tensor, l2_strength: float) -> nn.Linear:
    """Minimise the penalised cross-entropy with L-BFGS, starting from zero."""
    head = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=_MAX_STEPS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(head(features), labels)
        value = value + l2_strength * head.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # untyped in torch
    return head
