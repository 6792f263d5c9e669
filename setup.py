"Packaging: every value comes from settings.ini, where nbdev keeps it."
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    license="GPL-3.0-only",
    packages=find_packages(include=["slpo", "slpo.*"]),
    package_data={"slpo": ["recipes/*.yaml", "recipes/accelerate/*.yaml", "py.typed"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={"dev": shlex.split(cfg["dev_requirements"])},
    entry_points={"console_scripts": shlex.split(cfg["console_scripts"])},
    zip_safe=False,
)
