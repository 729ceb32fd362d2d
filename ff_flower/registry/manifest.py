"""What a module file says about itself, in one canonical JSON text.

The text is part of the hashed file, so nothing in it may differ between two equal fits: no dates, no seconds, no host
names. It is canonical: keys sorted, no spaces, everything beyond ASCII escaped, floats as Python's shortest ``repr``. A reader
refuses any other spelling of the same content, so one content has one text and one module id.
"""

import json
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..config import LARGEST_SIDE, LONGEST_NAME, OWNER, normal_form
from ..errors import VerificationError


def grey_or_colour(channels: int) -> int:
    """Return ``channels`` where it is 1 or 3."""
    if channels == 2:
        raise ValueError("1 for grey or 3 for colour images")
    return channels


def printable(text: str) -> str:
    """Return ``text`` in its `normal_form`.

    Raises
    ------
    ValueError
        If it holds a character without a glyph of its own: line ends, control characters, bidirectional marks, lone surrogates.
    """
    normal = normal_form(text)
    if not normal.isprintable():
        raise ValueError("must hold printable characters only; remove control and bidirectional marks")
    return normal


Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(printable), Field(max_length=LONGEST_NAME)]
Owner = Annotated[str, Field(pattern=f"^{OWNER.pattern}$")]
Text = Annotated[str, AfterValidator(printable), Field(max_length=1024)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Channels = Annotated[int, Field(ge=1, le=3), AfterValidator(grey_or_colour)]
Setting = str | Int64 | Annotated[float, Field(allow_inf_nan=False)] | bool


class ModuleManifest(BaseModel):
    """Everything a receiver needs to know about a module before using it.

    Attributes
    ----------
    format_version : int
        1, the only version there is.
    kind : str
        Name of the generative module's class, for example ``edm``.
    spec : dict from str to scalar
        The kind's settings, flat, for example ``EDMSpec().flat()``.
    label, label_name : int, str
        The class whose images the module was fitted to, and its name in the data set's table (printable, NFC).
    image_shape : tuple of int
        (C, H, W) of a sample: C is 1 or 3, H and W lie in 1..1024.
    value_range : tuple of int
        (0, 255), the integers to which a sample is quantized.
    num_examples : int
        Images of the class that the owner had, those held out included, at least 1.
    owner : str
        Partition id as text, or the name a node chose: 1 to 64 of ``A-Z a-z 0-9 . _ -``, no dot in front.
    dataset : str
        Name of the data set.
    images_shown : int
        Images shown in training, repetitions counted.
    root_seed : int
        Root seed of the run.
    wire_dtype : str
        Type of every floating tensor in the file.
    libraries : dict from str to str
        Versions of the libraries that can change the weights.
    licence : str
        Licence of the images.
    note : str
        Anything a reader should know, for example a fallback to another kind.

    Raises
    ------
    pydantic.ValidationError
        On construction, naming the field, the value and the rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Literal[1] = 1
    kind: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    spec: dict[Name, Setting]
    label: Count
    label_name: Name
    image_shape: tuple[Channels, Side, Side]
    value_range: tuple[Literal[0], Literal[255]] = (0, 255)
    num_examples: int = Field(ge=1, lt=2**63)
    owner: Owner
    dataset: Text
    images_shown: Count
    root_seed: Count
    wire_dtype: Literal["float16", "float32", "bfloat16"]
    libraries: dict[Name, Name]
    licence: Text
    note: Text = ""

    def canonical_json(self) -> str:
        """Return the manifest's one JSON text: sorted keys, no spaces, ASCII, floats by ``repr``."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a manifest that someone else wrote.

        Raises
        ------
        VerificationError
            Rule ``manifest``: the text is not JSON, or a key is missing, unknown, or holds what it may not.
            Rule ``canonical-manifest``: the text is not the canonical form of what it says (keys doubled or out of order,
            spaces, other escapes, ``1e2`` for ``100.0``).
        """
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])[:80]
            raise VerificationError("manifest", f"{place!r}: {first['msg'][:200]}; send what ModuleManifest writes") from None
        if manifest.canonical_json() != text:
            raise VerificationError(
                "canonical-manifest", f"{text[:80]!r}... is not the canonical JSON of what it says; send canonical_json()"
            )
        return manifest
