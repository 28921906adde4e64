import pytest

from progeo.evaluation.latex import as_latex, latex_table


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("sf_xl 50% & $x^2", r"sf\_xl 50\% \& \$x\textasciicircum{}2"),
        ("a\\b{c}~#", r"a\textbackslash{}b\{c\}\textasciitilde{}\#"),
        ("[1]*", "{[}1{]}{*}"),
        ("a---b-c", "a-{}-{}-b-c"),
        ("two\nlines", "two lines"),
    ],
)
def test_what_latex_would_take_for_a_command_is_escaped(text, latex):
    assert as_latex(text) == latex


def test_rules_lie_below_the_heading_of_each_group_of_columns():
    lines = latex_table("x", "Recalls.", ("Name", "Dim."), {"a_b": ["R@1", "R@5"], "c": ["R@1"]}, [list("abcde")])
    assert lines.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Recalls.}",
        r"\label{tab:x}",
        r"\begin{tabular}{llccc}",
        r"\toprule",
        r" &  & \multicolumn{2}{c}{a\_b} & \multicolumn{1}{c}{c} \\",
        r"\cmidrule(lr){3-4} \cmidrule(lr){5-5}",
        r"Name & Dim. & R@1 & R@5 & R@1 \\",
        r"\midrule",
        r"a & b & c & d & e \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
