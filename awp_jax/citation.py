"""What to cite, as BibTeX; ``CITATION.cff`` says the same of the library."""

_TEMPLATE = """\
@software{{awp_jax,
  title = {{awp_jax: Adversarial weight perturbation, robustness evaluation and flatness, in JAX}},
  author = {{{{awp_jax contributors}}}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}

@inproceedings{{wu2020adversarial,
  title = {{Adversarial Weight Perturbation Helps Robust Generalization}},
  author = {{Wu, Dongxian and Xia, Shu-Tao and Wang, Yisen}},
  booktitle = {{Advances in Neural Information Processing Systems}},
  year = {{2020}}
}}

@misc{{wu2020revisiting,
  title = {{Revisiting Loss Landscape for Adversarial Robustness}},
  author = {{Wu, Dongxian and Wang, Yisen and Xia, Shu-Tao}},
  note = {{arXiv:2004.05884v1, the first version of wu2020adversarial}},
  year = {{2020}}
}}

@inproceedings{{yu2022robust,
  title = {{Robust Weight Perturbation for Adversarial Training}},
  author = {{Yu, Chaojian and Han, Bo and Gong, Mingming and Shen, Li and Ge, Shiming and Du, Bo
            and Liu, Tongliang}},
  booktitle = {{International Joint Conference on Artificial Intelligence}},
  year = {{2022}}
}}

@inproceedings{{stutz2021relating,
  title = {{Relating Adversarially Robust Generalization to Flat Minima}},
  author = {{Stutz, David and Hein, Matthias and Schiele, Bernt}},
  booktitle = {{International Conference on Computer Vision}},
  year = {{2021}}
}}
"""


def bibtex(version: str) -> str:
    """The entries, the library's first; of what ``awp_jax.cite`` tells."""
    return _TEMPLATE.format(version=version)
