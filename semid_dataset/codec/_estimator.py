"""A quantizer in the manner of scikit-learn, without importing it: settings, fit, transform."""

import importlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from semid_dataset.codec.kinds import as_vectors
from semid_dataset.errors import ConfigError, NotFittedError

__all__ = ["Estimator"]


class Estimator:
    """
    What `ResidualQuantizer` has of an estimator. The settings are kept as they were given; `fit` looks them over.

    Where there are no codebooks yet everything that needs them raises NotFittedError.
    """

    _settings: dict[str, Any]

    if TYPE_CHECKING:

        def encode(self, vectors: Any) -> Any: ...

        def decode(self, codes: Any) -> Any: ...

    def fit(self, vectors: Any, y: object = None) -> Any:
        """
        Train codebooks on vectors, and be the quantizer of these from now on.

        Args:
            vectors: (n, dim), finite, in anything that `objects.as_matrix` takes.
            y: not looked at.

        Returns:
            This quantizer.

        Raises:
            EmbeddingError: no vectors; a row is not finite (the message names the first); or all are equal.
            ConfigError: a setting is out of range, there is no such device, or the algorithm makes another kind.
            TrainingError: memory did not suffice.
        """
        from semid_dataset.codec.residual import ResidualQuantizer
        from semid_dataset.codec.train import configured, fit_quantizer

        settings = dict(self._settings)
        algorithm = settings["algorithm"]
        config, trainer = configured(
            algorithm,
            num_quantizers=settings["levels"],
            codebook_size=settings["codes"],
            device=settings["device"],
            seed=settings["seed"],
        )
        fitted = fit_quantizer(
            as_vectors(vectors), trainer, sizes=config.codebook_sizes, device=config.device, seed=config.seed
        ).quantizer
        if not isinstance(fitted, ResidualQuantizer):
            raise ConfigError(
                f"The algorithm {trainer.name!r} makes a quantizer of the kind {fitted.kind!r}, no ResidualQuantizer. "
                "Nothing was changed. Use semid_dataset.fit(vectors, algorithm=...), and take the table's quantizer."
            )
        for name in [*self.__dict__]:  # what was derived from other codebooks; others keep attributes here, too
            if isinstance(getattr(type(self), name, None), cached_property):
                del self.__dict__[name]
        self.__dict__.update(fitted.__dict__)
        self._settings = settings
        return self

    def transform(self, vectors: Any) -> Any:
        """Return the codes of vectors: `encode`."""
        return self.encode(vectors)

    def fit_transform(self, vectors: Any, y: object = None) -> Any:
        """Return the codes of the vectors that the codebooks are trained on."""
        return self.fit(vectors).encode(vectors)

    def inverse_transform(self, codes: Any) -> Any:
        """Return the vectors that codes stand for: `decode`."""
        return self.decode(codes)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings by name; `deep` is scikit-learn's, and there is nothing below them."""
        return dict(self._settings)

    def set_params(
        self, *, algorithm: Any = None, levels: Any = None, codes: Any = None, device: Any = None, seed: Any = None
    ) -> Any:
        """Set those settings that are given, which the next `fit` takes; return this quantizer."""
        given = {"algorithm": algorithm, "levels": levels, "codes": codes, "device": device, "seed": seed}
        self._settings = {name: old if given[name] is None else given[name] for name, old in self._settings.items()}
        return self

    def __getattr__(self, name: str) -> Any:
        if name in {"codebooks", "dim", "codebook_sizes", "search", "mean", "scale", "beam"}:
            raise NotFittedError(f"This {type(self).__name__} has no codebooks yet. Call fit(vectors) first.")
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __sklearn_is_fitted__(self) -> bool:
        return "codebooks" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        utils = importlib.import_module("sklearn.utils")
        return utils.Tags(
            estimator_type=None,
            target_tags=utils.TargetTags(required=False),
            transformer_tags=utils.TransformerTags(preserves_dtype=[]),
        )
