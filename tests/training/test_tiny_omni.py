"""models/tiny-omni by the command line: it answers what is typed, and what its own voice asks it."""

from pathlib import Path

from lluda.cli.main import main as lluda_command
from training.config import PATH

MODEL = Path(__file__).parents[2] / "models" / "tiny-omni"
SPOKEN = {
    "Which day comes after Monday?": "Tuesday comes after Monday.",
    "What is twelve plus five?": "Twelve plus five is seventeen.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "How many legs has a dog?": "A dog has four legs.",
}


def answered(capsys, *arguments):
    assert lluda_command(["ask", "-m", str(MODEL), "-t", "0", *map(str, arguments)]) == 0
    return capsys.readouterr().out.strip()


def test_its_config_is_the_trainer_s():
    assert (MODEL / "config.json").read_text() == PATH.read_text()
    assert (MODEL / "model.safetensors").stat().st_size <= 16 * 1024**2


def test_it_answers_a_typed_question(capsys):
    question = "What is forty seven plus thirty six?"
    assert answered(capsys, question) == "Forty seven plus thirty six is eighty three."


def test_it_hears_its_own_voice_and_answers(capsys, tmp_path):
    """Three of four: a rounding of another machine may turn a word."""
    right = 0
    for number, (question, answer) in enumerate(SPOKEN.items()):
        sound = tmp_path / f"{number}.wav"
        assert lluda_command(["speak", "-m", str(MODEL), "--speaker", "lark", "-o", str(sound), question]) == 0
        right += answered(capsys, "--audio", sound) == answer
    assert right >= 3
