import autocompress.errors as errors
from autocompress.errors import AutocompressError, unknown


def test_every_exception_is_in_the_tree_and_its_drawing():
    for name in errors.__all__:
        value = getattr(errors, name)
        if isinstance(value, type):
            assert issubclass(value, AutocompressError)
            assert name in errors.__doc__
            assert value.__doc__


def test_unknown_names_the_nearest():
    text = unknown("layer", "conv", ["conv1", "fc", "layer1.0.conv2"])
    assert text.startswith("Unknown layer 'conv'. Did you mean 'conv1'?")
    assert "fc" in text
    assert unknown("task", "x", []) == "Unknown task 'x'. Known: none."
    assert "(40 in all)" in unknown("layer", "q", [f"layer{i}" for i in range(40)])
