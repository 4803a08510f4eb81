"Tables and images that cannot be read say why."

import os
import shutil

import numpy as np
import pytest
import tifffile

from ipb_nb.core import InputError, in_pixels, read_image, read_numbers, read_table, write_png


@pytest.mark.parametrize(
    'text, says',
    {
        b'image\n\na.png\n\xfc.png': 'line 4: found a byte that is not UTF-8 .0xfc.',
        b'image,label\na.png\n': 'line 2: found 1 fields; expected 2',
        b'a,a\n': 'line 1: found column a twice',
        b'a,b\n1,2\n1,2,3\n': 'line 3: found 3 fields; expected 2',
        b'a,b\n"1,2\n': 'found text that is not CSV',
        b'': 'found an empty file',
        b'image,label\n"a\n.png",x\n\nb.png\n': 'line 5: found 1 fields',  # the quoted cell takes two lines
    }.items(),
)
def test_tables_that_cannot_be_read(tmp_path, text, says):
    (tmp_path / 'cells.csv').write_bytes(text)
    with pytest.raises(InputError, match=says):
        read_table(tmp_path / 'cells.csv', [])


def test_columns_of_a_table(tmp_path):
    path = tmp_path / 'cells.csv'
    path.write_text('image,label,time_h\na.png,x,\n')
    with pytest.raises(InputError, match='line 1: found column time_h; expected some of image, label'):
        read_table(path, ['image', 'label'], [])
    with pytest.raises(InputError, match='cells.csv: found no such file'):
        read_table(tmp_path / 'gone' / 'cells.csv', [])
    df = read_table(path, ['image', 'label'], ['time_h'])
    with pytest.raises(InputError, match='line 2: found x as label; expected a whole number from 0'):
        read_numbers(df, 'label', path, integer=True)


@pytest.mark.parametrize('imagej', [True, False])
def test_a_stack_is_no_image(tmp_path, imagej):
    tifffile.imwrite(tmp_path / 'film.tif', np.zeros((5, 48, 64), np.uint8), imagej=imagej)
    with pytest.raises(InputError, match='film.tif: found a stack of 5 planes; expected one image per file'):
        read_image(tmp_path / 'film.tif')


def test_a_name_from_a_system_that_was_not_set_to_utf8(tmp_path):
    write_png(np.zeros((48, 64), np.uint8), tmp_path / 'a.png')
    shutil.copy(tmp_path / 'a.png', os.fsencode(tmp_path) + b'/\xe4.png')
    with pytest.raises(InputError, match='udce4.png: found a name that is not UTF-8'):
        read_image(f'{tmp_path}/\udce4.png')


def test_a_size_without_a_unit():
    with pytest.raises(InputError, match='size: found 9 miles; expected pixels'):
        in_pixels('9 miles', 0.8)
