"Packaging: every value comes from settings.ini, where nbdev keeps it."

import re
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
readme = (here / "README.md").read_text(encoding="utf-8")

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=re.sub(
        r"(!?)\[([^]]*)\]\((?!https?:|#)[^)]*\)", lambda m: "" if m[1] else m[2], readme
    ),  # links into the repository lead nowhere on a package index
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    license_expression="GPL-3.0-only",
    license_files=["LICENSE"],
    packages=find_packages(include=["slpo", "slpo.*"]),
    package_data={"slpo": ["recipes/*.yaml", "recipes/accelerate/*.yaml", "py.typed"]},
    include_package_data=False,
    python_requires=">=" + cfg["min_python"],
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={
        extra: shlex.split(cfg[f"{extra}_requirements"]) for extra in ("dev", "judge", "bench")
    },
    entry_points={"console_scripts": shlex.split(cfg["console_scripts"])},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(
            f"Programming Language :: Python :: {version}"
            for version in cfg["tested_pythons"].split()
        ),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
