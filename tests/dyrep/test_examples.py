"""The examples of the library do what they say."""

from examples import timm_network


def test_a_timm_network_grows_and_its_checkpoint_goes_on_with_the_same_bits(capsys):
    timm_network.main()
    printed = capsys.readouterr().out
    assert printed.count("grow ") == 3
    assert "the same bits" in printed
    assert "fused: " in printed
