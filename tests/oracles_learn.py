"""The paper's protocols, transcribed with scikit-learn and plain torch, a fit at a time."""

import numpy as np
import torch
from sklearn.linear_model import Ridge, SGDClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

ALPHAS = [1, 0.1, 0.01, 0.001, 0.0001]


def parts(n, seed):
    """80/10/10 of the sorted rows."""
    train, rest = train_test_split(list(range(n)), test_size=0.2, random_state=seed)
    valid, test = train_test_split(rest, test_size=0.5, random_state=seed)
    return train, valid, test


def probe(x, y):
    """Best alpha by mean validation macro-F1; mean and sd of its test macro-F1; all of them."""
    best, grid = (-1.0, None, None, None), []
    for alpha in ALPHAS:
        valid_f1, test_f1 = [], []
        for seed in range(5):
            train, valid, test = parts(len(y), seed)
            model = SGDClassifier(
                loss="log_loss",
                penalty="l2",
                alpha=alpha,
                class_weight="balanced",
                max_iter=10000,
                random_state=1,
            )
            model.fit(x[train], y[train])
            valid_f1.append(f1_score(y[valid], model.predict(x[valid]), average="macro"))
            test_f1.append(f1_score(y[test], model.predict(x[test]), average="macro"))
        grid.append(test_f1)
        if np.mean(valid_f1) > best[0]:
            best = (np.mean(valid_f1), alpha, np.mean(test_f1), np.std(test_f1))
    return best[1:], grid


def ridge(x, y):
    """Best alpha of one gene, mean test error and mean test correlation."""
    best = (np.inf, None, None, None)
    for alpha in ALPHAS:
        errors, test_errors, correlations = [], [], []
        for seed in range(5):
            train, valid, test = parts(len(y), seed)
            model = Ridge(solver="lsqr", fit_intercept=False, alpha=alpha)
            model.fit(x[train], y[train])
            errors.append(np.mean((y[valid] - model.predict(x[valid])) ** 2))
            predicted = model.predict(x[test])
            test_errors.append(np.mean((y[test] - predicted) ** 2))
            correlations.append(np.corrcoef(y[test], predicted)[0, 1])
        if np.mean(errors) < best[0]:
            best = (np.mean(errors), alpha, np.mean(test_errors), np.mean(correlations))
    return best[1:]


def loss(images, genes, scale):
    """CLIP's loss, pair by pair, in float64."""
    images, genes = images.double(), genes.double()
    n, total = len(images), 0.0
    logits = [[scale.exp() * (a @ b) / (a.norm() * b.norm()) for b in genes] for a in images]
    for i in range(n):
        row = sum(torch.exp(logits[i][j]) for j in range(n))
        column = sum(torch.exp(logits[j][i]) for j in range(n))
        total += torch.log(row) + torch.log(column) - 2 * logits[i][i]
    return total / (2 * n)
