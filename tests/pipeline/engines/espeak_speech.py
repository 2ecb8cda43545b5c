"""Texts, renders and measures that espeak's tests share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from ipc.messages import SAMPLE_RATE, Boundary, TokenSample, TokenSpan
from pipeline.engines.base import AudioStep, EngineConfig, Samples, Segment, Settings, TokenStep
from pipeline.engines.espeak.audio import EspeakAudio
from pipeline.engines.espeak.catalogue import bundled
from pipeline.engines.espeak.library import RATE_HZ, Library
from pipeline.engines.espeak.style import style_of
from pipeline.engines.espeak.tokens import EspeakTokens, open_library

CONFIG = EngineConfig(max_batch=16)

PARAGRAPHS = {
    "en-us": "All human beings are born free and equal in dignity and rights. They are endowed with reason and "
    "conscience and should act towards one another in a spirit of brotherhood. Everyone has the right to life, "
    "liberty and security of person.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
    "und sollen einander im Geist der Brüderlichkeit begegnen. Jeder hat das Recht auf Leben, Freiheit und "
    "Sicherheit der Person.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité. Tout individu a droit à la "
    "vie, à la liberté et à la sûreté de sa personne.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros. Todo individuo tiene derecho a la vida, a "
    "la libertad y a la seguridad de su persona.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di "
    "coscienza e devono agire gli uni verso gli altri in spirito di fratellanza. Ogni individuo ha diritto alla "
    "vita, alla libertà ed alla sicurezza della propria persona.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de "
    "consciência, devem agir uns para com os outros em espírito de fraternidade. Todo o indivíduo tem direito à "
    "vida, à liberdade e à segurança pessoal.",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах. Они наделены разумом и совестью и "
    "должны поступать в отношении друг друга в духе братства. Каждый человек имеет право на жизнь, на свободу и на "
    "личную неприкосновенность.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात "
    "स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर "
    "उन्हें भाईचारे के भाव से बर्ताव करना चाहिए। प्रत्येक व्यक्ति को जीवन, स्वाधीनता और वैयक्तिक सुरक्षा का अधिकार है।",
    "cmn": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。"
    "人人有权享有生命、自由和人身安全。",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا، وعليهم أن يعامل بعضهم بعضا بروح "
    "الإخاء. لكل فرد الحق في الحياة والحرية وسلامة شخصه.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i "
    "sumieniem i powinni postępować wobec innych w duchu braterstwa. Każdy człowiek ma prawo do życia, wolności i "
    "bezpieczeństwa swej osoby.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve "
    "birbirlerine karşı kardeşlik zihniyeti ile hareket etmelidirler. Yaşamak, hürriyet ve "
    "kişi emniyeti her ferdin hakkıdır.",
}


@dataclass(frozen=True)
class Speech:
    """A segment through both halves."""

    samples: Samples
    steps: list[TokenStep]
    rungs: list[AudioStep]

    @property
    def spans(self) -> list[TokenSpan]:
        return [span for step in self.steps for span in step.alignment]

    @property
    def times(self) -> list[TokenSample]:
        return [time for rung in self.rungs for time in rung.token_samples]


class Halves:
    """Both halves of espeak in one process."""

    def __init__(self) -> None:
        self.tokens = EspeakTokens(CONFIG, _quiet)
        self.audio = EspeakAudio(CONFIG, _quiet)
        self._number = 0

    def speak(
        self,
        text: str,
        *,
        voice: str = "",
        language: str = "",
        boundary: Boundary = "end",
        speed: float = 1.0,
        seed: int = 1,
        settings: Settings | None = None,
    ) -> Speech:
        self._number += 1
        segment = Segment(text, boundary, voice, language, speed, seed, settings or {})
        steps = self.translate(self._number, segment)
        samples, rungs = self.render(self._number, segment, steps)
        return Speech(samples, steps, rungs)

    def translate(
        self, number: int, segment: Segment, history: bytes = b"", history_tokens: int = 0
    ) -> list[TokenStep]:
        self.tokens.admit(number, segment, history, history_tokens)
        steps: list[TokenStep] = []
        while not (steps and steps[-1].final):
            (step,) = self.tokens.step()
            assert isinstance(step, TokenStep), step
            steps.append(step)
        return steps

    def render(self, number: int, segment: Segment, steps: list[TokenStep]) -> tuple[Samples, list[AudioStep]]:
        self.audio.open(number, segment)
        rungs, done = [], 0
        for step in steps:
            done += step.tokens
            self.audio.feed(number, step.tokens, step.data, step.final)
            (rung,) = self.audio.render([(number, done)])
            assert isinstance(rung, AudioStep), rung
            rungs.append(rung)
        self.audio.close_stream(number)
        return np.concatenate([rung.samples for rung in rungs]), rungs

    def close(self) -> None:
        self.tokens.close()
        self.audio.close()


def _quiet(doing: str, deadline_s: float) -> None:
    """Progress that nobody listens to."""


def untouched_library() -> Library:
    """espeak-ng with its own voice files and dictionaries."""
    return open_library(lambda text: text, dictionaries=True)


def direct(library: Library, text: str, voice: str, speed: float = 1.0, pause: bool = False) -> Samples:
    """The whole text in one call of the library, at 24 kHz."""
    library.renew()
    library.use(bundled().choose(voice, "").id, style_of({}, speed).parameters)
    pcm = library.speak(text, pause=pause, seed=1).pcm
    return np.asarray(soxr.resample(pcm.astype(np.float32) / 32768, RATE_HZ, SAMPLE_RATE, quality="HQ"))


HOP = 120
_FRAME = 600
_BANDS = 40
_ORDER = 13


def mel_cepstra(samples: Samples) -> np.ndarray:
    """Mel-cepstral coefficients 1 … 13 every 5 ms (25 ms Hann windows, 40 bands to 8 kHz)."""
    from scipy.fft import dct

    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (_FRAME // 2, _FRAME)), _FRAME)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_FRAME), 1024)) ** 2
    logs = np.log(np.maximum(power @ _filters().T, 1e-5))
    return np.asarray(dct(logs, type=2, norm="ortho", axis=1)[:, 1 : _ORDER + 1] / np.sqrt(2 * _BANDS))


def _filters() -> np.ndarray:
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), _BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1) / (SAMPLE_RATE / 1024)
    bins = np.arange(513)[None, :]
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))


def warp(left: np.ndarray, right: np.ndarray, band_s: float = 0.5) -> list[tuple[int, int]]:
    """Dynamic time warping of two rows of frames, no further apart than ``band_s``."""
    width = int(band_s * SAMPLE_RATE / HOP)
    cost = np.full((len(left) + 1, len(right) + 1), np.inf)
    cost[0, 0] = 0
    for row in range(1, len(left) + 1):
        first, last = max(1, row - width), min(len(right), row + width)
        if first > last:
            raise ValueError(f"{len(left)} and {len(right)} frames are too different in number to be warped")
        here = np.sqrt(((right[first - 1 : last] - left[row - 1]) ** 2).sum(1))
        above = np.minimum(cost[row - 1, first : last + 1], cost[row - 1, first - 1 : last])
        before = cost[row, first - 1]
        for column in range(first, last + 1):
            before = here[column - first] + min(above[column - first], before)
            cost[row, column] = before
    path = [(len(left), len(right))]
    while path[-1] != (1, 1):
        row, column = path[-1]
        path.append(min(((row - 1, column - 1), (row - 1, column), (row, column - 1)), key=lambda at: cost[at]))
    return [(row - 1, column - 1) for row, column in reversed(path)]


def mel_cepstral_distance(left: np.ndarray, right: np.ndarray, path: list[tuple[int, int]]) -> float:
    """In decibels, mean over the warped frames."""
    rows, columns = np.array(path).T
    return float(np.mean(10 / np.log(10) * np.sqrt(2 * ((left[rows] - right[columns]) ** 2).sum(1))))


def envelope(samples: Samples) -> np.ndarray:
    """Root of the energy of 25 ms every 5 ms."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (_FRAME // 2, _FRAME)), _FRAME)[::HOP]
    return np.asarray(np.sqrt((frames**2).mean(1)))
